//! `Result` by whatever name, and what a user has called so.

use std::result;

use pool_core::{Task, TaskError, pool_task};

type Result<T> = result::Result<T, TaskError>;

#[pool_task]
fn aliased(text: &str) -> Result<u8> {
    Ok(text.parse()?)
}

#[pool_task(format = "msgpack")]
fn spelled(text: &str) -> std::result::Result<(), pool_core::TaskError> {
    text.parse::<u8>()?;
    Ok(())
}

mod physics {
    #[derive(Debug, serde::Serialize, serde::Deserialize)]
    pub struct Result<T>(pub T);

    #[pool_core::pool_task]
    pub fn measured(x: f64) -> Result<f64> {
        Result(x)
    }

    #[pool_core::pool_task(format = "msgpack")]
    pub fn described(x: f64) -> Result<f64> {
        Result(x)
    }
}

fn output<T: Task>(_: T, output: T::Output) -> T::Output {
    output
}

fn main() {
    assert!(output(aliased, aliased("x")).is_err());
    assert_eq!(output(spelled, spelled("7")), Ok(()));
    assert_eq!(output(physics::measured, physics::measured(1.5)).0, 1.5);
    assert_eq!(output(physics::described, physics::described(1.5)).0, 1.5);
}

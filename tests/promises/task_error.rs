//! Errors that tasks return: what becomes of any error, and of the pool's own.

use std::fs;
use std::path::Path;

use pool_core::{Error, Pool, TaskError, pool_task};

use crate::support::{is_sandboxed, pool, watchdog, works};

#[pool_task]
fn sum(file: &Path) -> Result<u64, TaskError> {
    let mut total = 0;
    for line in fs::read_to_string(file)?.lines() {
        total += line.parse::<u64>()?;
    }
    if total == 0 {
        return Err("there is nothing to add up".into());
    }
    Ok(total)
}

#[pool_task(format = "msgpack")]
fn sum_described(file: &Path) -> Result<u64, TaskError> {
    sum(file)
}

#[test]
fn a_task_that_fails_says_why() -> Result<(), Box<dyn std::error::Error>> {
    let _dog = watchdog();
    let pool = pool(2);
    let directory = tempfile::tempdir()?;
    let files: Vec<_> = ["1\n2\n", "x\n", "0\n"]
        .into_iter()
        .enumerate()
        .map(|(number, text)| {
            let file = directory.path().join(number.to_string());
            fs::write(&file, text).map(|()| file)
        })
        .collect::<Result<_, _>>()?;
    let missing = directory.path().join("missing");
    let inputs = || files.iter().chain([&missing]).cloned();
    let results = pool.map(sum, inputs())?;
    assert_eq!(results, pool.map(sum_described, inputs())?);
    assert_eq!(results[0], Ok(3));
    let error = |at: usize| results[at].as_ref().expect_err("it fails");
    assert_eq!(error(1).message(), "invalid digit found in string");
    assert_eq!(error(1).type_name(), "core::num::error::ParseIntError");
    assert_eq!(error(2).to_string(), "there is nothing to add up");
    assert_eq!(error(3).type_name(), "std::io::error::Error");
    assert_eq!(format!("{:?}", error(3)), error(3).message());
    Ok(())
}

/// An error with a cause.
#[derive(Debug)]
struct Outer(Error);

impl std::fmt::Display for Outer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the inner pool failed")
    }
}

impl std::error::Error for Outer {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

#[pool_task]
fn panics_at(x: u32) -> u32 {
    assert_ne!(x, 3, "three is too much");
    x
}

#[pool_task]
fn dies(_: u32) {
    std::process::abort();
}

#[pool_task]
fn with_a_cause() -> Result<u32, TaskError> {
    let pool = Pool::with_processes(1)?;
    Ok(pool.apply(panics_at, (3,)).map_err(Outer)?)
}

#[test]
fn causes_travel() -> Result<(), Error> {
    let _dog = watchdog();
    // A sandboxed task can't start a pool: see `pools_nest`.
    if is_sandboxed() {
        return Ok(());
    }
    let error = pool(1).apply(with_a_cause, ())?.unwrap_err();
    assert_eq!(error.message(), "the inner pool failed");
    let causes: Vec<&str> = error.causes().collect();
    assert_eq!(causes.len(), 1);
    assert!(causes[0].contains("three is too much"), "{error}");
    assert!(error.to_string().ends_with(causes[0]));
    let boxed = error.clone().into_boxed();
    assert_eq!(
        boxed.source().map(ToString::to_string).as_deref(),
        Some(causes[0])
    );
    Ok(())
}

/// Returns errors of an inner pool: one of each of several kinds.
#[pool_task]
fn inner(case: u8) -> Result<(), Error> {
    let pool = Pool::with_processes(1)?;
    match case {
        0 => pool.map(panics_at, 0..5).map(|_| ()),
        1 => pool.map(dies, [1]).map(|_| ()),
        2 => Pool::builder().processes(0).build().map(|_| ()),
        3 => {
            pool.close();
            pool.apply(panics_at, (1,)).map(|_| ())
        }
        _ => Ok(()),
    }
}

#[test]
fn the_pools_own_error_travels_without_loss() -> Result<(), Error> {
    let _dog = watchdog();
    // A sandboxed task can't start a pool: see `pools_nest`.
    if is_sandboxed() {
        return Ok(());
    }
    let pool = pool(2);
    let errors = pool.map(inner, 0..5)?;
    let errors: Vec<_> = errors.into_iter().map(Result::err).collect();
    let [
        Some(panicked),
        Some(lost),
        Some(invalid),
        Some(Error::Closed),
        None,
    ] = &errors[..]
    else {
        panic!("{errors:?}");
    };
    let Error::Panicked(panic) = panicked else {
        panic!("{panicked:?}");
    };
    assert!(
        panicked
            .task()
            .is_some_and(|task| task.ends_with("::panics_at"))
    );
    assert_eq!(panicked.index(), Some(3));
    assert!(panic.message().contains("three is too much"));
    assert!(panic.location().is_some_and(|at| at.contains(file!())));
    let Error::WorkerLost(worker) = lost else {
        panic!("{lost:?}");
    };
    // A map of one input has an index, too.
    assert_eq!((worker.signal(), lost.index()), (Some("SIGABRT"), Some(0)));
    assert!(worker.pid() > 1 && lost.to_string().contains(&worker.pid().to_string()));
    let Error::InvalidSetting(setting) = invalid else {
        panic!("{invalid:?}");
    };
    assert_eq!(setting.setting(), "processes");
    works(&pool);
    Ok(())
}

#[test]
fn apply_has_no_index_and_map_has_one() {
    let _dog = watchdog();
    let pool = pool(1);
    let one = pool.apply(panics_at, (3,)).unwrap_err();
    assert_eq!(one.index(), None);
    let one = pool.apply_async(panics_at, (3,)).get().unwrap_err();
    assert_eq!(one.index(), None);
    let one = pool.map(panics_at, [3]).unwrap_err();
    assert_eq!(one.index(), Some(0));
    let one = pool.starmap_async(panics_at, [(3,)]).get().unwrap_err();
    assert_eq!(one.index(), Some(0));
}

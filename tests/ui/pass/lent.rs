//! Arguments that are made where they are given, and their types inferred.

use pool_core::{Error, Pool, pool_task};

#[pool_task]
fn join(name: String, numbers: Vec<u16>, scale: f32) -> String {
    format!("{name}{numbers:?}{scale}")
}

#[pool_task]
fn square(x: u64) -> u64 {
    x * x
}

fn all(pool: &Pool) -> Result<(), Error> {
    pool.apply(join, ("a".into(), (0..3).collect(), 1.0))?;
    let call = pool.task(join).partial(("a".into(),));
    call.apply(((0..3).collect(), 2.0))?;
    call.starmap([(vec![], 1.0)])?;
    let call = call.partial(([1, 2].into_iter().collect(),)).chunksize(2);
    call.map([1.0, 2.5])?;
    call.imap((0..10).map(|x| x as f32)).count();
    call.map(Vec::new())?;
    pool.task(square).by_ref().map(&[1, 2, 3])?;
    pool.task(square).by_ref().imap([1, 2, 3].iter()).count();
    let texts = ["a".to_owned()];
    pool.task(join).by_ref().starmap(texts.iter().map(|text| (text, &[1, 2], &1.0)))?;
    let call = pool.task(join).by_ref().partial((&texts[0], &vec![1]));
    call.map(&[1.0])?;
    let _copies = (call.clone(), call);
    Ok(())
}

fn main() -> Result<(), Error> {
    all(&Pool::with_processes(1)?)
}

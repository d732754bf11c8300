//! Panic hooks that a program sets in its workers, and how they affect the location of a panic.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::{panic, thread};

use pool_core::{Error, Pool, Sandbox, pool_task};

use crate::support::{append, builder_with, checked, lines, pool, watchdog, works};

static FILE: OnceLock<PathBuf> = OnceLock::new();

fn note(line: u64) {
    append(FILE.get().expect("the hook was set first"), line);
}

/// Replaces the previous hook.
#[pool_task]
fn set_hook(file: &Path) {
    FILE.get_or_init(|| file.to_path_buf());
    panic::set_hook(Box::new(|_| note(1)));
}

/// Calls the previous hook.
#[pool_task]
fn chain_hook(file: &Path) {
    FILE.get_or_init(|| file.to_path_buf());
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        note(1);
        before(info);
    }));
}

#[pool_task]
fn panics(x: u64) -> u64 {
    assert_ne!(x, 3, "three is too much");
    x
}

#[pool_task]
fn panics_on_a_thread() -> bool {
    thread::spawn(|| panics(3)).join().is_err()
}

#[pool_task]
fn gets_over_it() -> bool {
    panic::catch_unwind(|| panics(3)).is_err()
}

#[pool_task]
fn panics_without_a_hook() {
    panic::resume_unwind(Box::new("quietly"));
}

#[track_caller]
fn has_a_location(pool: &Pool) {
    let error = pool.apply(panics, (3,)).unwrap_err();
    let Error::Panicked(panicked) = &error else {
        panic!("{error:?}");
    };
    assert!(panicked.message().contains("three is too much"), "{error}");
    let location = panicked.location();
    assert!(
        location.is_some_and(|at| at.contains("hooks.rs:")),
        "{error}"
    );
}

/// Checks that the hook is called for the panic on another thread, and for no other.
fn check(pool: &Pool, file: &Path) -> Result<(), Error> {
    has_a_location(pool);
    assert!(pool.apply(gets_over_it, ())?);
    assert_eq!(lines(file), [0; 0]);
    assert!(pool.apply(panics_on_a_thread, ())?);
    assert_eq!(lines(file), [1]);
    has_a_location(pool);
    // Tasks that call no hook do not add another one each time.
    for _ in 0..50 {
        let error = pool.apply(panics_without_a_hook, ()).unwrap_err();
        assert!(error.to_string().contains("quietly"), "{error}");
    }
    has_a_location(pool);
    assert_eq!(lines(file), [1]);
    works(pool);
    Ok(())
}

#[test]
fn of_an_initializer() -> Result<(), Box<dyn std::error::Error>> {
    let _dog = watchdog();
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("set");
    let set = builder_with(Sandbox::threads)
        .processes(1)
        .initializer(set_hook, (file.clone(),));
    check(&checked(set.build()), &file)?;
    let file = directory.path().join("chained");
    let chained = builder_with(Sandbox::threads)
        .processes(1)
        .initializer(chain_hook, (file.clone(),));
    check(&checked(chained.build()), &file)?;
    Ok(())
}

#[test]
fn of_a_preload_task() -> Result<(), Box<dyn std::error::Error>> {
    let _dog = watchdog();
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("file");
    let preload = builder_with(Sandbox::threads)
        .processes(1)
        .preload(set_hook, (file.clone(),));
    check(&checked(preload.build()), &file)?;
    Ok(())
}

#[test]
fn of_a_task() -> Result<(), Box<dyn std::error::Error>> {
    let _dog = watchdog();
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("file");
    let pool = pool(1);
    for times in 1..4 {
        pool.apply(set_hook, (file.clone(),))?;
        // The task's own hook is called for the first panic.
        let error = pool.apply(panics, (3,)).unwrap_err();
        assert!(error.to_string().contains("three is too much"), "{error}");
        assert_eq!(lines(&file).len(), times);
        has_a_location(&pool);
        has_a_location(&pool);
        assert_eq!(lines(&file).len(), times);
    }
    Ok(())
}

//! A sandboxed worker can't use up what all processes of its user have together.

use std::ptr;

use pool_core::{PoolBuilder, Sandbox, pool_task};

use crate::support::{builder, checked, is_sandboxed, watchdog, works};

/// Opens descriptors until none are left, and returns how many.
fn hoard() -> Vec<i32> {
    // SAFETY: no memory is involved.
    let opened = std::iter::repeat_with(|| unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) });
    opened.take_while(|fd| *fd >= 0).collect()
}

fn close(descriptors: Vec<i32>) {
    for fd in descriptors {
        // SAFETY: they were opened here, and nobody else knows them.
        unsafe { libc::close(fd) };
    }
}

#[pool_task]
fn count_descriptors() -> usize {
    let hoard = hoard();
    let count = hoard.len();
    close(hoard);
    count
}

/// Sends itself signals that wait, until no more can wait, and returns how many do.
#[pool_task]
fn count_signals() -> usize {
    let signal = libc::SIGRTMIN() + 3;
    // SAFETY: all zeros is a valid set, and one without signals.
    let mut blocked: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is initialized.
    unsafe { libc::sigaddset(&raw mut blocked, signal) };
    // SAFETY: as above; null: the old set is not wanted.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const blocked, ptr::null_mut()) };
    let value = libc::sigval {
        sival_ptr: ptr::null_mut(),
    };
    let own = i32::try_from(std::process::id()).expect("a pid");
    // SAFETY: the signal is blocked, so nothing handles it.
    let sent = std::iter::repeat_with(|| unsafe { libc::sigqueue(own, signal, value) });
    sent.take_while(|sent| *sent == 0).count()
}

// Their type differs between C libraries.
const NOFILE: i32 = libc::RLIMIT_NOFILE as i32;
const SIGPENDING: i32 = libc::RLIMIT_SIGPENDING as i32;

/// Lowers a limit, as a service manager might have.
#[pool_task]
fn lower(resource: i32, most: u64) {
    let limit = libc::rlimit {
        rlim_cur: most,
        rlim_max: most,
    };
    // SAFETY: reads a variable of ours.
    let set = unsafe { libc::setrlimit(resource as libc::__rlimit_resource_t, &raw const limit) };
    assert_eq!(set, 0);
}

/// The settings of a pool of one worker, which has this limit.
fn limited(resource: i32, most: usize, sandbox: Option<Sandbox>) -> PoolBuilder {
    let builder = builder()
        .processes(1)
        .initializer(lower, (resource, most as u64));
    match sandbox {
        Some(sandbox) => builder.sandbox(sandbox),
        None => builder,
    }
}

#[test]
fn a_sandboxed_worker_opens_only_so_many_descriptors() {
    let _watchdog = watchdog();
    if is_sandboxed() {
        return;
    }
    const MOST: usize = 1500;
    let count = |sandbox: Option<Sandbox>| {
        let pool = checked(limited(NOFILE, MOST, sandbox).build());
        let count = pool.apply(count_descriptors, ()).expect("it returns");
        works(&pool);
        count
    };
    let plain = count(None);
    assert!(plain > 1400, "{plain}");
    assert_eq!(count(Some(Sandbox::new())), 256);
    let reads = count(Some(Sandbox::new().read("/usr")));
    assert_eq!(reads, 1024);
    let network = count(Some(Sandbox::new().network()));
    assert!(network <= MOST / 2 && network > MOST / 3, "{network}");
}

#[test]
fn a_sandboxed_worker_leaves_room_for_signals_of_others() {
    let _watchdog = watchdog();
    if is_sandboxed() {
        return;
    }
    const MOST: usize = 2000;
    let count = |sandbox: Option<Sandbox>| {
        let pool = checked(limited(SIGPENDING, MOST, sandbox).build());
        pool.apply(count_signals, ()).expect("it returns")
    };
    let plain = count(None);
    assert!(plain > MOST / 2, "{plain}");
    let sandboxed = count(Some(Sandbox::new()));
    assert!(sandboxed > 0 && sandboxed <= MOST / 2, "{sandboxed}");
}

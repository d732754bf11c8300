//! Which system calls a sandboxed worker may make.
//!
//! The filter permits what is listed here, and refuses the rest with EPERM, with two exceptions: some calls end the process;
//! and calls whose arguments lie in memory are answered with ENOSYS, for which libraries then use older calls. (A filter sees
//! the number of a call and its arguments, but not what they point to.)

use std::collections::BTreeMap;
use std::env::consts::ARCH;
use std::io;
use std::process;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter_all_threads,
    sock_filter,
};

use super::{Sandbox, not_entered};

/// The names of system calls, and their numbers.
type Calls = &'static [(&'static str, i64)];

macro_rules! calls {
    ($($name:ident)*) => { &[$((stringify!($name), libc::$name)),*] };
}

/// The same, of calls that only an old architecture has.
#[cfg(target_arch = "x86_64")]
macro_rules! old_calls {
    ($($name:ident)*) => { calls![$($name)*] };
}
#[cfg(not(target_arch = "x86_64"))]
macro_rules! old_calls {
    ($($name:ident)*) => {
        &[]
    };
}

/// Computing, memory, time, threads that exist, and what is open.
const ALWAYS: [Calls; 2] = [
    calls![
        SYS_read SYS_readv SYS_pread64 SYS_preadv SYS_preadv2
        SYS_write SYS_writev SYS_pwrite64 SYS_pwritev SYS_pwritev2
        SYS_close SYS_close_range SYS_dup SYS_dup3 SYS_lseek SYS_fstat SYS_fsync SYS_fdatasync
        SYS_ppoll SYS_pselect6 SYS_epoll_create1 SYS_epoll_ctl SYS_epoll_pwait SYS_epoll_pwait2
        SYS_eventfd2 SYS_pipe2 SYS_signalfd4
        SYS_timerfd_create SYS_timerfd_settime SYS_timerfd_gettime
        SYS_recvfrom SYS_recvmsg SYS_getsockopt SYS_getsockname SYS_getpeername
        SYS_mmap SYS_munmap SYS_mremap SYS_mprotect SYS_brk SYS_msync SYS_mincore SYS_mlock SYS_mlock2
        SYS_munlock SYS_mlockall SYS_munlockall SYS_membarrier SYS_pkey_alloc SYS_pkey_free SYS_pkey_mprotect
        SYS_futex_waitv SYS_set_robust_list SYS_rseq SYS_set_tid_address
        SYS_rt_sigreturn SYS_rt_sigprocmask SYS_rt_sigpending SYS_rt_sigsuspend SYS_rt_sigtimedwait SYS_sigaltstack
        SYS_restart_syscall
        SYS_getitimer SYS_setitimer SYS_timer_create SYS_timer_settime SYS_timer_gettime SYS_timer_getoverrun
        SYS_timer_delete SYS_clock_gettime SYS_clock_getres SYS_clock_nanosleep SYS_nanosleep SYS_gettimeofday SYS_times
        SYS_getpid SYS_gettid SYS_getppid SYS_getpgid SYS_getsid SYS_getuid SYS_geteuid SYS_getgid SYS_getegid
        SYS_getresuid SYS_getresgid SYS_getgroups SYS_capget
        SYS_getcpu SYS_getrusage SYS_sysinfo SYS_uname SYS_getrandom
        SYS_sched_yield SYS_sched_getaffinity SYS_sched_getparam SYS_sched_getscheduler SYS_sched_get_priority_max
        SYS_sched_get_priority_min
        SYS_exit SYS_exit_group
    ],
    old_calls![
        SYS_dup2 SYS_poll SYS_select SYS_epoll_create SYS_epoll_wait SYS_eventfd SYS_pipe SYS_signalfd SYS_pause SYS_alarm
        SYS_time SYS_getpgrp SYS_getrlimit SYS_arch_prctl
    ],
];

/// What works with paths, and changes nothing. Landlock decides which files these may open. (It does not decide about `stat`
/// and the like.)
const PATHS: [Calls; 2] = [
    calls![
        SYS_newfstatat SYS_statx SYS_statfs SYS_fstatfs SYS_faccessat SYS_faccessat2 SYS_readlinkat SYS_getdents64
        SYS_getcwd SYS_chdir SYS_fchdir SYS_fadvise64 SYS_readahead SYS_sendfile SYS_copy_file_range SYS_flock SYS_umask
    ],
    old_calls![SYS_stat SYS_lstat SYS_access SYS_readlink SYS_getdents],
];

/// `libc` does not have it for every C library.
#[cfg(target_arch = "aarch64")]
const RENAMEAT: Calls = &[("SYS_renameat", 38)];
#[cfg(not(target_arch = "aarch64"))]
const RENAMEAT: Calls = &[];

/// What changes files and directories. Not owners, permissions, times and attributes, about which Landlock does not decide.
const CHANGES: [Calls; 3] = [
    calls![
        SYS_mkdirat SYS_unlinkat SYS_truncate SYS_ftruncate SYS_fallocate SYS_sync_file_range
    ],
    old_calls![SYS_mkdir SYS_rmdir SYS_unlink SYS_rename SYS_renameat],
    RENAMEAT,
];

const NETWORK: Calls = calls![
    SYS_connect SYS_bind SYS_listen SYS_accept SYS_accept4 SYS_sendto SYS_sendmsg SYS_sendmmsg SYS_recvmmsg SYS_setsockopt
];

/// What processes need that start others. (Not `setsid` and `setpgid`: what a worker starts ends with its group.)
const PROCESSES: [Calls; 2] = [
    calls![
        SYS_execve SYS_execveat SYS_wait4 SYS_waitid
        SYS_kill SYS_tkill SYS_tgkill SYS_rt_sigqueueinfo SYS_rt_tgsigqueueinfo SYS_pidfd_send_signal
    ],
    old_calls![SYS_fork SYS_vfork],
];

/// What a program that reads data has no use for. These end the process.
const FORBIDDEN: [Calls; 2] = [
    calls![
        SYS_ptrace SYS_process_vm_readv SYS_process_vm_writev SYS_pidfd_getfd
        SYS_bpf SYS_perf_event_open SYS_userfaultfd
        SYS_io_uring_setup SYS_io_uring_enter SYS_io_uring_register
        SYS_add_key SYS_request_key SYS_keyctl
        SYS_mount SYS_umount2 SYS_pivot_root SYS_chroot SYS_move_mount SYS_open_tree SYS_mount_setattr
        SYS_fsopen SYS_fsconfig SYS_fsmount SYS_fspick SYS_open_by_handle_at
        SYS_unshare SYS_setns
        SYS_init_module SYS_finit_module SYS_delete_module
        SYS_kexec_load SYS_reboot SYS_swapon SYS_swapoff SYS_acct
        SYS_settimeofday SYS_clock_settime SYS_sethostname SYS_setdomainname
    ],
    old_calls![SYS_kexec_file_load SYS_iopl SYS_ioperm SYS_modify_ldt],
];

/// Their arguments lie in memory. Libraries try others if the kernel does not have these.
const UNKNOWN: [Calls; 1] = [calls![SYS_clone3 SYS_openat2]];

/// The name of a call that ends the process.
pub(crate) fn name_of(number: u32) -> Option<&'static str> {
    let mut all = FORBIDDEN.iter().copied().flatten();
    let found = all.find(|(_, known)| *known == i64::from(number))?;
    found.0.strip_prefix("SYS_")
}

/// Whether there are filters for this processor, and the kernel has them.
pub(super) fn is_supported() -> bool {
    let action: u32 = libc::SECCOMP_RET_TRAP;
    // SAFETY: the call only reads the action.
    let has = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_GET_ACTION_AVAIL,
            0,
            &raw const action,
        )
    };
    has == 0 && TargetArch::try_from(ARCH).is_ok()
}

/// Installs the filter, in all threads. `has_rules`: whether Landlock decides about paths.
pub(super) fn install(sandbox: &Sandbox, has_rules: bool) -> io::Result<()> {
    let program = compile(sandbox, has_rules).map_err(not_entered)?;
    apply_filter_all_threads(&program).map_err(not_entered)
}

/// Compiles the filter.
///
/// The filters that `seccompiler` makes compare the number of a call with one listed number after the other. When a filter is
/// installed, the kernel compiles it, and runs it once for each number that there is; so those filters take most of the time
/// that a worker needs to start. This one is shorter, and a binary search finds the call.
fn compile(sandbox: &Sandbox, has_rules: bool) -> Result<BpfProgram, BackendError> {
    let permitted = permitted(sandbox, has_rules).into_iter();
    let permitted = permitted.map(|(number, rules)| match rules.is_empty() {
        true => (number, Block::Answer(SeccompAction::Allow)),
        false => (number, Block::Rules(any_of(&rules))),
    });
    let mut blocks: Vec<(i64, Block)> = permitted.collect();
    for (calls, action) in [
        (&UNKNOWN[..], SeccompAction::Errno(libc::ENOSYS as u32)),
        (&FORBIDDEN[..], SeccompAction::Trap),
    ] {
        let calls = calls.iter().copied().flatten();
        blocks.extend(calls.map(|(_, number)| (*number, Block::Answer(action.clone()))));
    }
    // A filter without rules consists of a check of the processor, and its answer to all calls.
    let arch = TargetArch::try_from(ARCH)?;
    let empty = SeccompFilter::new(BTreeMap::new(), REFUSE, SeccompAction::Allow, arch)?;
    let mut program = BpfProgram::try_from(empty)?;
    program.pop();
    program.push(load(NUMBER_AT));
    blocks.sort_unstable_by_key(|(number, _)| *number);
    search(&ranges(blocks), &mut program);
    Ok(program)
}

/// What happens to a call.
#[derive(Debug, PartialEq)]
enum Block {
    Answer(SeccompAction),
    Rules(BpfProgram),
}

/// What happens to all calls from a number on, up to the next range.
type Range = (u32, Block);

fn ranges(blocks: Vec<(i64, Block)>) -> Vec<Range> {
    let mut ranges: Vec<Range> = Vec::with_capacity(2 * blocks.len());
    ranges.push((0, Block::Answer(REFUSE)));
    let mut begin = |number: u32, block: Block| match ranges.last_mut() {
        Some((first, last)) if *first == number => *last = block,
        Some((_, last)) if *last == block => {}
        _ => ranges.push((number, block)),
    };
    for (number, block) in blocks {
        let number = number as u32;
        begin(number, block);
        begin(number + 1, Block::Answer(REFUSE));
    }
    ranges
}

/// Appends a search for the range of the number that was loaded.
fn search(ranges: &[Range], program: &mut BpfProgram) {
    let (below, above) = ranges.split_at(ranges.len() / 2);
    let (true, Some((first, _))) = (!below.is_empty(), above.first()) else {
        match ranges {
            [(_, Block::Rules(rules)), ..] => program.extend_from_slice(rules),
            [(_, Block::Answer(action)), ..] => program.push(answer(action.clone())),
            [] => {}
        }
        return;
    };
    let node = program.len();
    program.push(instruction(IF_AT_LEAST, *first));
    search(below, program);
    let skipped = program.len() - node - 1;
    match u8::try_from(skipped) {
        Ok(skipped) => program[node].jt = skipped,
        // A longer jump needs an instruction of its own, which is jumped over.
        Err(_) => {
            program[node].jf = 1;
            let jump = instruction(libc::BPF_JMP | libc::BPF_JA, skipped as u32);
            program.insert(node + 1, jump);
        }
    }
    search(above, program);
}

/// Permits a call if one of these rules holds.
fn any_of(rules: &[Rule]) -> BpfProgram {
    let mut block = BpfProgram::new();
    let mut loaded = None;
    for rule in rules {
        // From the end, since a condition that does not hold jumps over what follows it.
        let mut all = vec![answer(SeccompAction::Allow)];
        for condition in rule.iter().rev() {
            let code = condition.compile(all.len());
            all.splice(0..0, code);
        }
        // What the rule before has loaded is still there if that was all that it loaded.
        if loaded.is_some() && loaded == rule[0].loads_only() {
            all.remove(0);
        }
        block.extend(all);
        loaded = match &rule[..] {
            [single] => single.loads_only(),
            _ => None,
        };
    }
    block.push(answer(REFUSE));
    block
}

/// Where a filter finds the number of the call, and its arguments.
const NUMBER_AT: u32 = 0;
const ARGUMENTS_AT: u32 = 16;
const ARGUMENT: u32 = 8;

const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const IF_AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;

const REFUSE: SeccompAction = SeccompAction::Errno(libc::EPERM as u32);

fn answer(action: SeccompAction) -> sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, action.into())
}

fn load(place: u32) -> sock_filter {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, place)
}

fn instruction(code: u32, k: u32) -> sock_filter {
    sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    }
}

/// Jumps over so many instructions if this holds, or, if `unless`, if it does not.
fn jump(code: u32, k: u32, unless: bool, over: usize) -> sock_filter {
    let over = u8::try_from(over).expect("a rule is short");
    let (jt, jf) = if unless { (0, over) } else { (over, 0) };
    sock_filter {
        jt,
        jf,
        ..instruction(code, k)
    }
}

/// Conditions that must hold together; at least one.
type Rule = Vec<Condition>;

/// For each call, the rules of which one must hold; if there are none, the call is always meant.
type Rules = BTreeMap<i64, Vec<Rule>>;

fn rules_for(lists: &[Calls]) -> Rules {
    let all = lists.iter().copied().flatten();
    all.map(|(_, number)| (*number, Vec::new())).collect()
}

fn permitted(sandbox: &Sandbox, has_rules: bool) -> Rules {
    let mut rules = rules_for(&ALWAYS);
    let permits = [
        (&PATHS[..], sandbox.opens()),
        (&CHANGES[..], !sandbox.write.is_empty()),
        (&[NETWORK], sandbox.network),
        (&PROCESSES[..], sandbox.processes),
    ];
    for (lists, is_permitted) in permits {
        if is_permitted {
            rules.extend(rules_for(lists));
        }
    }
    let mut permit = Permit(&mut rules);
    permit.control(sandbox);
    permit.memory();
    permit.opening(sandbox, has_rules);
    permit.starting(sandbox);
    permit.signals(sandbox);
    permit.sockets(sandbox);
    rules
}

struct Permit<'r>(&'r mut Rules);

impl Permit<'_> {
    /// Permits a call, also if all of these conditions hold; unless it is permitted under all.
    fn also(&mut self, number: i64, conditions: &[Condition]) {
        match self.0.get_mut(&number) {
            Some(rules) if rules.is_empty() => {}
            Some(rules) => rules.push(conditions.to_vec()),
            None => drop(self.0.insert(number, vec![conditions.to_vec()])),
        }
    }

    /// Questions about descriptors and the process itself, and what changes nothing outside.
    fn control(&mut self, sandbox: &Sandbox) {
        let outgoing = sandbox.network || sandbox.threads || sandbox.processes;
        let mut commands = vec![
            libc::F_GETFD,
            libc::F_SETFD,
            libc::F_GETFL,
            libc::F_DUPFD,
            libc::F_DUPFD_CLOEXEC,
            libc::F_GET_SEALS,
            libc::F_GETPIPE_SZ,
        ];
        if sandbox.opens() {
            commands.extend([
                libc::F_GETLK,
                libc::F_SETLK,
                libc::F_SETLKW,
                libc::F_OFD_GETLK,
                libc::F_OFD_SETLK,
                libc::F_OFD_SETLKW,
            ]);
        }
        for command in commands {
            self.also(libc::SYS_fcntl, &[is(1, command)]);
        }
        // Not O_ASYNC, with which a descriptor would send signals, nor O_DIRECT, with which others could not write to a file
        // that they share.
        if outgoing {
            let others = libc::O_ASYNC | libc::O_DIRECT | libc::O_NOATIME;
            let flags = [is(1, libc::F_SETFL), lacks(2, others)];
            self.also(libc::SYS_fcntl, &flags);
            self.also(libc::SYS_ioctl, &[is(1, libc::FIONBIO)]);
        }
        for command in [
            libc::TCGETS,
            libc::TIOCGWINSZ,
            libc::FIONREAD,
            libc::FIOCLEX,
            libc::FIONCLEX,
        ] {
            self.also(libc::SYS_ioctl, &[is(1, command)]);
        }
        for option in [
            libc::PR_GET_NAME,
            libc::PR_SET_NAME,
            libc::PR_GET_PDEATHSIG,
            libc::PR_GET_DUMPABLE,
            libc::PR_GET_TIMERSLACK,
            libc::PR_SET_TIMERSLACK,
            libc::PR_GET_NO_NEW_PRIVS,
            libc::PR_SET_NO_NEW_PRIVS,
            libc::PR_GET_SECCOMP,
            libc::PR_GET_TID_ADDRESS,
            libc::PR_CAPBSET_READ,
            libc::PR_SET_VMA,
        ] {
            self.also(libc::SYS_prctl, &[is(0, option)]);
        }
        // The worker keeps its parent-death signal.
        let ends = [is(0, libc::PR_SET_PDEATHSIG), is_exactly(1, libc::SIGKILL)];
        self.also(libc::SYS_prctl, &ends);
        // Limits can be read, and affinities of the calling thread can be set.
        for process in [0, process::id()] {
            self.also(libc::SYS_prlimit64, &[is(0, process), is_exactly(2, 0)]);
        }
        self.also(libc::SYS_sched_setaffinity, &[is(0, 0)]);
        // That of another process shows where its memory is.
        self.also(libc::SYS_get_robust_list, &[is(0, 0)]);
    }

    /// Memory, some of which is shared with the parent and other workers.
    fn memory(&mut self) {
        // On memory that is shared, nothing that moves threads which sleep there, or bars others from waking them.
        for operation in [
            libc::FUTEX_WAIT,
            libc::FUTEX_WAKE,
            libc::FUTEX_WAIT_BITSET,
            libc::FUTEX_WAIT_BITSET | libc::FUTEX_CLOCK_REALTIME,
            libc::FUTEX_WAKE_BITSET,
        ] {
            self.also(libc::SYS_futex, &[is(1, operation)]);
        }
        let private = libc::FUTEX_PRIVATE_FLAG;
        self.also(libc::SYS_futex, &[has(1, private, private)]);
        // Root may declare a page broken that others use.
        self.also(libc::SYS_madvise, &[is_below(2, libc::MADV_HWPOISON)]);
    }

    /// Files that are created must not run with the rights of their owner, and none may be a device. Where Landlock does not
    /// decide about paths, and none may be written, files are only opened for reading.
    fn opening(&mut self, sandbox: &Sandbox, has_rules: bool) {
        if !sandbox.opens() {
            return;
        }
        if !sandbox.write.is_empty() {
            // The whiteout that a file leaves behind is a device, about which Landlock does not decide.
            self.also(libc::SYS_renameat2, &[lacks(4, libc::RENAME_WHITEOUT)]);
        }
        let writes = has_rules || !sandbox.write.is_empty();
        let condition = |flags: u32| {
            if writes {
                lacks(flags + 1, libc::S_ISUID | libc::S_ISGID)
            } else {
                // The other flag of O_TMPFILE is O_DIRECTORY.
                let nameless = libc::O_TMPFILE & !libc::O_DIRECTORY;
                lacks(
                    flags,
                    libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC | nameless,
                )
            }
        };
        self.also(libc::SYS_openat, &[condition(2)]);
        #[cfg(target_arch = "x86_64")]
        {
            self.also(libc::SYS_open, &[condition(1)]);
            if writes {
                self.also(libc::SYS_creat, &[condition(0)]);
            }
        }
    }

    /// New threads and processes: not in new namespaces, nor as children of the parent.
    fn starting(&mut self, sandbox: &Sandbox) {
        const APART: i32 = libc::CLONE_PARENT
            | libc::CLONE_PTRACE
            | libc::CLONE_NEWNS
            | libc::CLONE_NEWCGROUP
            | libc::CLONE_NEWUTS
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWUSER
            | libc::CLONE_NEWPID
            | libc::CLONE_NEWNET;
        let mut clone = |wanted: i32| {
            let condition = has(0, APART | libc::CLONE_THREAD, wanted);
            self.also(libc::SYS_clone, &[condition]);
        };
        if sandbox.threads {
            clone(libc::CLONE_THREAD);
        }
        if sandbox.processes {
            clone(0);
        }
    }

    /// Signals to itself, and handlers of all but the one that ends the worker.
    fn signals(&mut self, sandbox: &Sandbox) {
        self.also(libc::SYS_rt_sigaction, &[is_not(0, libc::SIGSYS)]);
        if sandbox.processes {
            return;
        }
        for call in [
            libc::SYS_kill,
            libc::SYS_tkill,
            libc::SYS_tgkill,
            libc::SYS_rt_sigqueueinfo,
            libc::SYS_rt_tgsigqueueinfo,
        ] {
            self.also(call, &[is(0, process::id())]);
        }
    }

    /// Without the network, only what goes to the other end of a connection.
    fn sockets(&mut self, sandbox: &Sandbox) {
        self.also(libc::SYS_sendto, &[is_exactly(4, 0)]);
        if sandbox.network || sandbox.threads || sandbox.processes {
            // Not of datagrams: such a socket can send to any other.
            for kind in [libc::SOCK_STREAM, libc::SOCK_SEQPACKET] {
                let pair = [is(0, libc::AF_UNIX), is_kind(1, kind)];
                self.also(libc::SYS_socketpair, &pair);
            }
            self.0.insert(libc::SYS_shutdown, Vec::new());
        }
        if !sandbox.network {
            return;
        }
        for family in [libc::AF_INET, libc::AF_INET6] {
            for (kind, protocol) in [
                (libc::SOCK_STREAM, libc::IPPROTO_TCP),
                (libc::SOCK_DGRAM, libc::IPPROTO_UDP),
            ] {
                for protocol in [0, protocol] {
                    let socket = [is(0, family), is_kind(1, kind), is(2, protocol)];
                    self.also(libc::SYS_socket, &socket);
                }
            }
        }
    }
}

/// A condition for an argument, which is identified by its position.
#[derive(Debug, Clone, Copy)]
struct Condition(u32, Test);

/// All but the last look only at half of an argument: where the kernel reads no more, the other half may contain anything.
#[derive(Debug, Clone, Copy)]
enum Test {
    Is(u32),
    IsNot(u32),
    IsBelow(u32),
    /// Of these bits, it has those.
    Has(u32, u32),
    IsExactly(u64),
}

fn is(argument: u32, value: impl Into<i128>) -> Condition {
    Condition(argument, Test::Is(half(value)))
}

fn is_not(argument: u32, value: impl Into<i128>) -> Condition {
    Condition(argument, Test::IsNot(half(value)))
}

fn is_below(argument: u32, value: impl Into<i128>) -> Condition {
    Condition(argument, Test::IsBelow(half(value)))
}

fn has(argument: u32, of: impl Into<i128>, those: impl Into<i128>) -> Condition {
    Condition(argument, Test::Has(half(of), half(those)))
}

/// It has none of these flags.
fn lacks(argument: u32, flags: impl Into<i128>) -> Condition {
    has(argument, flags, 0)
}

/// It is this kind of socket, perhaps with flags.
fn is_kind(argument: u32, kind: impl Into<i128>) -> Condition {
    has(argument, 0xf, kind)
}

/// It is this pointer, or this number of 64 bits.
fn is_exactly(argument: u32, value: impl Into<i128>) -> Condition {
    Condition(argument, Test::IsExactly(value.into() as u64))
}

/// A constant of C, whose type differs between C libraries.
fn half(constant: impl Into<i128>) -> u32 {
    constant.into() as u32
}

impl Condition {
    /// Goes on if it holds, and otherwise jumps over what follows: so many instructions.
    fn compile(self, rest: usize) -> BpfProgram {
        let Condition(argument, test) = self;
        let place = ARGUMENTS_AT + ARGUMENT * argument;
        let (low, high) = (load(place), load(place + ARGUMENT / 2));
        match test {
            Test::Is(value) => vec![low, jump(IF_EQUAL, value, true, rest)],
            Test::IsNot(value) => vec![low, jump(IF_EQUAL, value, false, rest)],
            Test::IsBelow(value) => vec![low, jump(IF_AT_LEAST, value, false, rest)],
            Test::Has(of, those) => {
                let mask = instruction(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, of);
                vec![low, mask, jump(IF_EQUAL, those, true, rest)]
            }
            Test::IsExactly(value) => vec![
                high,
                jump(IF_EQUAL, (value >> 32) as u32, true, rest + 2),
                low,
                jump(IF_EQUAL, value as u32, true, rest),
            ],
        }
    }

    /// The argument, if half of it is all that this loads, and it stays as it was loaded.
    fn loads_only(&self) -> Option<u32> {
        match self.1 {
            Test::Is(_) | Test::IsNot(_) | Test::IsBelow(_) => Some(self.0),
            Test::Has(..) | Test::IsExactly(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use seccompiler::{SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};

    use super::*;

    /// Everything permitted.
    fn lax() -> Sandbox {
        Sandbox {
            read: vec!["/".into()],
            write: vec!["/".into()],
            network: true,
            threads: true,
            processes: true,
            ..Sandbox::default()
        }
    }

    #[test]
    fn no_permission_permits_what_ends_the_worker() {
        let permitted = permitted(&lax(), true);
        let forbidden = rules_for(&FORBIDDEN);
        assert!(forbidden.keys().all(|call| !permitted.contains_key(call)));
        assert_eq!(name_of(libc::SYS_ptrace as u32), Some("ptrace"));
        assert_eq!(name_of(libc::SYS_read as u32), None);
    }

    #[test]
    fn what_is_not_permitted_is_not_listed() {
        let strict = permitted(&Sandbox::default(), true);
        let missing = [
            libc::SYS_openat,
            libc::SYS_newfstatat,
            libc::SYS_socket,
            libc::SYS_socketpair,
            libc::SYS_shutdown,
            libc::SYS_connect,
            libc::SYS_sendmsg,
            libc::SYS_clone,
            libc::SYS_execve,
            libc::SYS_memfd_create,
            libc::SYS_setsid,
            libc::SYS_fchmod,
        ];
        for call in missing {
            assert!(!strict.contains_key(&call), "{call}");
        }
        // These depend on arguments.
        for call in [
            libc::SYS_kill,
            libc::SYS_ioctl,
            libc::SYS_fcntl,
            libc::SYS_sendto,
        ] {
            assert!(!strict[&call].is_empty(), "{call}");
        }
        let lax = permitted(&lax(), true);
        for call in [libc::SYS_kill, libc::SYS_sendto] {
            assert!(lax[&call].is_empty(), "{call}");
        }
        for call in [libc::SYS_socketpair, libc::SYS_openat] {
            assert!(!lax[&call].is_empty(), "{call}");
        }
        for call in [libc::SYS_setsid, libc::SYS_fchmod, libc::SYS_symlinkat] {
            assert!(!lax.contains_key(&call), "{call}");
        }
    }

    /// Runs a program for a call, as the kernel does.
    fn run(program: &[sock_filter], number: u32, arguments: [u64; 6]) -> u32 {
        let arch = match ARCH {
            "x86_64" => 0xc000_003e,
            "aarch64" => 0xc000_00b7,
            _ => 0xc000_00f3,
        };
        let mut data = vec![number, arch, 0, 0];
        data.extend(
            arguments
                .iter()
                .flat_map(|argument| [*argument as u32, (argument >> 32) as u32]),
        );
        let (mut at, mut value) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            at += 1;
            let jump = |is_true: bool| usize::from(if is_true { jt } else { jf });
            match code {
                0x20 => value = data[k as usize / 4],
                0x54 => value &= k,
                0x05 => at += k as usize,
                0x15 => at += jump(value == k),
                0x25 => at += jump(value > k),
                0x35 => at += jump(value >= k),
                0x06 => return k,
                _ => panic!("unknown instruction {code:#x}"),
            }
        }
    }

    /// Whether a sandbox permits a call with these arguments.
    fn permits(sandbox: &Sandbox, number: i64, arguments: [u64; 6]) -> bool {
        let program = compile(sandbox, true).expect("it can be compiled");
        run(&program, number as u32, arguments) == u32::from(SeccompAction::Allow)
    }

    #[test]
    fn pairs_of_sockets_can_not_send_to_others() {
        let unix = libc::AF_UNIX as u64;
        let flags = (libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) as u64;
        for sandbox in sandboxes() {
            let is_useful = sandbox.network || sandbox.threads || sandbox.processes;
            for (kind, can_send_to_others) in [
                (libc::SOCK_STREAM, false),
                (libc::SOCK_SEQPACKET, false),
                (libc::SOCK_DGRAM, true),
                // The kernel makes this SOCK_DGRAM.
                (libc::SOCK_RAW, true),
            ] {
                for flags in [0, flags, 7 << 32] {
                    let arguments = [unix, kind as u64 | flags, 0, 1, 0, 0];
                    assert_eq!(
                        permits(&sandbox, libc::SYS_socketpair, arguments),
                        is_useful && !can_send_to_others,
                        "{kind} {sandbox:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_others_share_keeps_its_flags() {
        let set = |flags: i32| [1, libc::F_SETFL as u64, flags as u64, 0, 0, 0];
        let lax = lax();
        assert!(permits(&lax, libc::SYS_fcntl, set(libc::O_NONBLOCK)));
        for flag in [libc::O_ASYNC, libc::O_DIRECT, libc::O_NOATIME] {
            let flags = set(flag | libc::O_NONBLOCK);
            assert!(!permits(&lax, libc::SYS_fcntl, flags), "{flag:o}");
        }
    }

    #[test]
    fn no_whiteout_is_left_behind() {
        let with = |flags: u32| [u64::MAX, 1, u64::MAX, 2, u64::from(flags), 0];
        let lax = lax();
        for flags in [0, libc::RENAME_NOREPLACE, libc::RENAME_EXCHANGE] {
            assert!(permits(&lax, libc::SYS_renameat2, with(flags)));
        }
        for more in [0, libc::RENAME_NOREPLACE] {
            let flags = with(libc::RENAME_WHITEOUT | more);
            assert!(!permits(&lax, libc::SYS_renameat2, flags));
        }
        let reads = Sandbox {
            write: Vec::new(),
            ..lax
        };
        assert!(!permits(&reads, libc::SYS_renameat2, with(0)));
    }

    #[test]
    fn only_its_own_list_of_robust_mutexes_is_read() {
        let of = |pid: u64| [pid, 1, 2, 0, 0, 0];
        for sandbox in sandboxes() {
            assert!(permits(&sandbox, libc::SYS_get_robust_list, of(0)));
            assert!(!permits(&sandbox, libc::SYS_get_robust_list, of(1)));
        }
    }

    fn sandboxes() -> impl Iterator<Item = Sandbox> {
        (0..32).map(|bits| {
            let all = lax();
            let some = |bit: u32| bits >> bit & 1 != 0;
            Sandbox {
                read: all.read.into_iter().filter(|_| some(0)).collect(),
                write: all.write.into_iter().filter(|_| some(1)).collect(),
                network: some(2),
                threads: some(3),
                processes: some(4),
                ..Sandbox::default()
            }
        })
    }

    /// The three filters that `seccompiler` makes of the same lists, of which the kernel obeys the strictest.
    fn reference(sandbox: &Sandbox, has_rules: bool) -> [BpfProgram; 3] {
        let condition = |Condition(argument, test): &Condition| {
            let half = SeccompCmpArgLen::Dword;
            let (length, comparison, value) = match *test {
                Test::Is(value) => (half, SeccompCmpOp::Eq, value.into()),
                Test::IsNot(value) => (half, SeccompCmpOp::Ne, value.into()),
                Test::IsBelow(value) => (half, SeccompCmpOp::Lt, value.into()),
                Test::Has(of, those) => (half, SeccompCmpOp::MaskedEq(of.into()), those.into()),
                Test::IsExactly(value) => (SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, value),
            };
            let condition = SeccompCondition::new(*argument as u8, length, comparison, value);
            condition.expect("there is such an argument")
        };
        let rule = |rule: Rule| {
            let rule = SeccompRule::new(rule.iter().map(condition).collect());
            rule.expect("there is a condition")
        };
        let arch = TargetArch::try_from(ARCH).expect("tests run where there are filters");
        let mut permitted = permitted(sandbox, has_rules);
        permitted.extend(rules_for(&UNKNOWN));
        let unknown = SeccompAction::Errno(libc::ENOSYS as u32);
        let filters = [
            (
                rules_for(&FORBIDDEN),
                SeccompAction::Allow,
                SeccompAction::Trap,
            ),
            (rules_for(&UNKNOWN), SeccompAction::Allow, unknown),
            (permitted, REFUSE, SeccompAction::Allow),
        ];
        filters.map(|(rules, otherwise, listed)| {
            let rules = rules.into_iter();
            let rules = rules.map(|(number, all)| (number, all.into_iter().map(rule).collect()));
            let filter = SeccompFilter::new(rules.collect(), otherwise, listed, arch);
            BpfProgram::try_from(filter.expect("it is valid")).expect("it is short enough")
        })
    }

    #[test]
    fn the_filter_decides_as_those_of_seccompiler() {
        let own = u64::from(process::id());
        let words = [
            0,
            1,
            2,
            3,
            4,
            5,
            6,
            9,
            10,
            16,
            31,
            100,
            128,
            131,
            265,
            0o4000,
            0o40000,
            0x5401,
            0x5413,
            own,
            own << 32 | 9,
            u64::MAX,
        ];
        let flags = [
            libc::CLONE_THREAD,
            libc::CLONE_NEWUSER,
            libc::CLONE_PARENT,
            libc::CLONE_VM,
        ];
        let words: Vec<u64> = words
            .into_iter()
            .chain(flags.map(|flag| flag as u64))
            .collect();
        for (has_rules, sandbox) in [true, false, true].into_iter().cycle().zip(sandboxes()) {
            let program = compile(&sandbox, has_rules).expect("it can be compiled");
            assert!(program.len() < 4096, "{}", program.len());
            let reference = reference(&sandbox, has_rules);
            let numbers = (0..600).chain([0x4000_0000, 0x4000_0065, u32::MAX]);
            let permitted = permitted(&sandbox, has_rules);
            for number in numbers {
                let rules = permitted.get(&i64::from(number));
                let has_conditions = rules.is_some_and(|rules| !rules.is_empty());
                for place in 0..if has_conditions { 6 } else { 1 } {
                    for (at, word) in words.iter().enumerate() {
                        let mut arguments = [words[(at * 7 + place) % words.len()]; 6];
                        arguments[place] = *word;
                        let answers = reference.each_ref().map(|one| run(one, number, arguments));
                        // The lower the number of an action, the stricter it is, apart from the data below.
                        let strictest = answers
                            .into_iter()
                            .min_by_key(|answer| answer & 0x7fff_0000);
                        let found = run(&program, number, arguments);
                        assert_eq!(
                            Some(found),
                            strictest,
                            "{number} {arguments:x?} {sandbox:?}"
                        );
                    }
                }
            }
        }
    }
}

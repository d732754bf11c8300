//! What hostile code tries, each by a raw system call, and where the standard library can do it, by that.

use std::env;
use std::ffi::{CString, c_void};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::mem;
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::ptr;
use std::thread;

use super::scene::{Aims, NUMBER_THERE, SECRET};

/// Something that hostile code tries.
pub(super) struct Attempt {
    pub(super) name: &'static str,
    pub(super) could: Could,
    pub(super) end: End,
    /// What permits it.
    pub(super) needs: &'static [Permission],
    pub(super) by_std: Option<Try>,
    pub(super) raw: Try,
}

pub(super) type Try = fn(&Aims) -> io::Result<()>;

/// What becomes of it without a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Could {
    /// It succeeds.
    Succeed,
    /// It succeeds, and the test sees what it has done.
    Change,
    /// The system call is made, and its arguments, which would do no harm, are refused with one of these.
    Be(&'static [i32]),
    /// It succeeds if the user may do everything.
    SucceedAsRoot,
    /// It is answered, whatever the answer: that depends on the machine.
    BeAnswered,
    /// Only a process that leads no session can do it.
    SucceedInChild,
}

/// What becomes of it in a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// EPERM or EACCES.
    Refused,
    /// It does not exist there: ENOSYS.
    Unknown,
    /// The worker ends by SIGSYS, and the error names this call.
    Death(&'static str),
    /// The same without a name.
    NamelessDeath,
}

/// What a sandbox may permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Permission {
    Threads,
    Processes,
    Network,
    /// Reading and writing the directory of the scene.
    Paths,
}

// ---- means ----------------------------------------------------------------------------------------

/// A system call, without a library in between.
fn call<const N: usize>(number: libc::c_long, arguments: [usize; N]) -> io::Result<usize> {
    let mut all = [0; 6];
    all[..N].copy_from_slice(&arguments);
    let [a, b, c, d, e, f] = all;
    // SAFETY: the arguments of all attempts are valid, or are refused by the kernel.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// See [`call`].
macro_rules! sys {
    ($number:ident $(, $argument:expr)* $(,)?) => {
        call(libc::$number, [$(($argument) as usize),*])
    };
}

const HERE: libc::c_int = libc::AT_FDCWD;

/// Minus one: no descriptor, no process, no change.
const NO: usize = usize::MAX;

fn c(path: impl AsRef<Path>) -> CString {
    CString::new(path.as_ref().as_os_str().as_bytes()).expect("it has no zero")
}

/// The address of what was given.
fn at<T>(what: &[T]) -> usize {
    what.as_ptr().addr()
}

fn of<T>(what: &T) -> usize {
    ptr::from_ref(what).expose_provenance()
}

fn path(aims: &Aims, name: &str) -> CString {
    c(aims.path(name))
}

/// Closes a descriptor.
fn close(descriptor: usize) {
    let _ = sys!(SYS_close, descriptor);
}

fn opened(path: &CString, flags: libc::c_int, mode: u32) -> io::Result<usize> {
    sys!(SYS_openat, HERE, path.as_ptr(), flags, mode)
}

fn open_and_close(path: &CString, flags: libc::c_int) -> io::Result<()> {
    opened(path, flags, 0o600).map(close)
}

fn done(result: io::Result<usize>) -> io::Result<()> {
    result.map(drop)
}

fn close_it(result: io::Result<usize>) -> io::Result<()> {
    result.map(close)
}

fn is(found: bool) -> io::Result<()> {
    found
        .then_some(())
        .ok_or_else(|| io::Error::other("something else happened"))
}

/// An address of the network.
fn on_this_machine(port: u16) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: port.to_be(),
        sin_addr: libc::in_addr {
            s_addr: u32::from(Ipv4Addr::LOCALHOST).to_be(),
        },
        sin_zero: [0; 8],
    }
}

/// The address of a Unix socket, and its length.
fn named(name: &[u8]) -> (libc::sockaddr_un, usize) {
    // SAFETY: all zeros is a valid value.
    let mut address: libc::sockaddr_un = unsafe { mem::zeroed() };
    address.sun_family = libc::AF_UNIX as u16;
    for (place, byte) in address.sun_path.iter_mut().zip(name) {
        *place = *byte as libc::c_char;
    }
    (address, mem::size_of::<libc::sa_family_t>() + name.len())
}

fn named_in(aims: &Aims, name: &str) -> (libc::sockaddr_un, usize) {
    named(aims.path(name).as_os_str().as_bytes())
}

fn abstract_name(aims: &Aims) -> (libc::sockaddr_un, usize) {
    named(&[b"\0", &aims.name()[..]].concat())
}

fn socket(family: i32, kind: i32) -> io::Result<usize> {
    sys!(SYS_socket, family, kind | libc::SOCK_CLOEXEC, 0)
}

fn connect<A>(family: i32, address: &A, len: usize) -> io::Result<()> {
    let socket = socket(family, libc::SOCK_STREAM)?;
    let result = sys!(SYS_connect, socket, of(address), len);
    close(socket);
    done(result)
}

fn send<A>(socket: usize, address: &A, len: usize) -> io::Result<()> {
    let result = sys!(SYS_sendto, socket, at(b"x"), 1, 0, of(address), len);
    close(socket);
    done(result)
}

fn send_message<A>(socket: usize, address: &A, len: usize) -> io::Result<()> {
    let byte = *b"x";
    let mut part = libc::iovec {
        iov_base: byte.as_ptr().cast_mut().cast(),
        iov_len: 1,
    };
    // SAFETY: all zeros is a valid value.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_name = ptr::from_ref(address).cast_mut().cast();
    message.msg_namelen = len as u32;
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    let result = sys!(SYS_sendmsg, socket, of(&message), 0);
    close(socket);
    done(result)
}

fn pair(kind: i32) -> io::Result<[usize; 2]> {
    let mut both = [0_i32; 2];
    sys!(
        SYS_socketpair,
        libc::AF_UNIX,
        kind | libc::SOCK_CLOEXEC,
        0,
        both.as_mut_ptr()
    )?;
    Ok(both.map(|one| one as usize))
}

/// Ends both ends.
fn close_both(both: [usize; 2]) {
    both.into_iter().for_each(close);
}

fn pipe() -> io::Result<[usize; 2]> {
    let mut both = [0_i32; 2];
    sys!(SYS_pipe2, both.as_mut_ptr(), libc::O_CLOEXEC)?;
    Ok(both.map(|one| one as usize))
}

/// Starts a process or a thread by this call, which ends at once without touching memory, so it may share everything.
#[cfg(target_arch = "x86_64")]
fn start(number: libc::c_long, flags: usize) -> io::Result<usize> {
    let result: isize;
    // SAFETY: what was started makes one more system call, which ends it, and touches no memory and no stack.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "mov eax, 60",
            "xor edi, edi",
            "syscall",
            "2:",
            inlateout("rax") number as isize => result,
            inlateout("rdi") flags => _,
            in("rsi") 0, in("rdx") 0, in("r10") 0, in("r8") 0,
            out("rcx") _, out("r11") _,
        );
    }
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result as i32))
}

#[cfg(not(target_arch = "x86_64"))]
fn start(number: libc::c_long, flags: usize) -> io::Result<usize> {
    let pid = call(number, [flags, 0, 0, 0, 0])?;
    if pid == 0 {
        // SAFETY: ends the copy.
        unsafe { libc::_exit(0) };
    }
    Ok(pid)
}

fn start_and_wait(number: libc::c_long, flags: libc::c_int) -> io::Result<()> {
    let child = start(number, flags as usize)?;
    done(sys!(SYS_wait4, child, 0, 0, 0))
}

/// What F_SETOWN and its relatives do together: the kernel itself sends the signal.
fn let_the_kernel_send(aims: &Aims, pid: u32) -> io::Result<()> {
    let [reader, writer] = pipe()?;
    let result = (|| {
        sys!(SYS_fcntl, reader, libc::F_SETOWN, pid)?;
        sys!(SYS_fcntl, reader, 10 /* F_SETSIG */, libc::SIGTERM)?;
        sys!(SYS_fcntl, reader, libc::F_SETFL, libc::O_ASYNC)?;
        sys!(SYS_write, writer, at(b"x"), 1)?;
        await_end(aims.victim)
    })();
    close_both([reader, writer]);
    result
}

/// Sends a signal by these arguments, and waits until it has arrived.
fn end_victim(aims: &Aims, sent: io::Result<usize>) -> io::Result<()> {
    sent?;
    await_end(aims.victim)
}

/// Waits until a process that was killed has ended; its parent reaps it later.
fn await_end(pid: u32) -> io::Result<()> {
    loop {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        if stat.contains(") Z ") {
            return Ok(());
        }
        thread::yield_now();
    }
}

/// What the kernel is told about a signal.
fn info() -> [i32; 32] {
    let mut info = [0; 32];
    info[0] = libc::SIGTERM;
    // SI_QUEUE
    info[2] = -1;
    info
}

fn part(address: u64, len: usize) -> libc::iovec {
    libc::iovec {
        iov_base: ptr::without_provenance_mut::<c_void>(address as usize),
        iov_len: len,
    }
}

fn write_into(pid: u32, address: u64) -> io::Result<()> {
    let bytes = *b"overwritten!";
    let (ours, theirs) = (part(at(&bytes) as u64, 8), part(address, 8));
    done(sys!(
        SYS_process_vm_writev,
        pid,
        of(&ours),
        1,
        of(&theirs),
        1,
        0
    ))
}

/// A handler that nothing calls.
extern "C" fn ignore(_: libc::c_int) {}

/// As the kernel knows it: a handler, flags, a restorer, and a mask.
fn action() -> [usize; 4] {
    [ignore as *const () as usize, 0, 0, 0]
}

fn block_sigsys() -> io::Result<()> {
    let mask: u64 = 1 << (libc::SIGSYS - 1);
    done(sys!(SYS_rt_sigprocmask, libc::SIG_BLOCK, of(&mask), 0, 8))
}

fn no_such(aims: &Aims) -> CString {
    path(aims, "no such file")
}

fn own_uid() -> u32 {
    // SAFETY: asks about this process.
    unsafe { libc::getuid() }
}

fn own_gid() -> u32 {
    // SAFETY: as above.
    unsafe { libc::getgid() }
}

fn random(aims: &Aims) -> PathBuf {
    aims.path("new")
}

// ---- the list -------------------------------------------------------------------------------------

use Could::{Be, BeAnswered, Change, Succeed, SucceedAsRoot, SucceedInChild};
use End::{Death, NamelessDeath, Refused, Unknown};
use Permission::{Network, Paths, Processes, Threads};

macro_rules! attempts {
    ($($name:literal: $could:expr, $end:expr, [$($needs:ident)*], $raw:expr $(, std: $std:expr)?;)*) => {
        &[$(Attempt {
            name: $name,
            could: $could,
            end: $end,
            needs: &[$($needs),*],
            by_std: attempts!(@ $($std)?),
            raw: $raw,
        }),*]
    };
    (@ $std:expr) => { Some($std) };
    (@) => { None };
}

/// All, except those that only one architecture has.
const EVERYWHERE: &[Attempt] = attempts! {
    // ---- files
    "read a file": Succeed, Refused, [Paths], |aims| {
        let file = opened(&path(aims, "file"), libc::O_RDONLY, 0)?;
        let mut text = [0_u8; SECRET.len()];
        sys!(SYS_read, file, text.as_mut_ptr(), text.len())?;
        close(file);
        is(text == SECRET.as_bytes())
    }, std: |aims| is(fs::read_to_string(aims.path("file"))? == SECRET);
    "read a file through a link": Succeed, Refused, [Paths], |aims| {
        open_and_close(&path(aims, "link"), libc::O_RDONLY)
    }, std: |aims| is(fs::read_to_string(aims.path("link"))? == SECRET);
    "read /etc/passwd": Succeed, Refused, [], |_| open_and_close(&c("/etc/passwd"), libc::O_RDONLY),
        std: |_| is(!fs::read("/etc/passwd")?.is_empty());
    "read its own program": Succeed, Refused, [], |_| open_and_close(&c("/proc/self/exe"), libc::O_RDONLY),
        std: |_| File::open("/proc/self/exe").map(drop);
    "write into its own memory": Succeed, Refused, [], |_| open_and_close(&c("/proc/self/mem"), libc::O_RDWR),
        std: |_| OpenOptions::new().write(true).open("/proc/self/mem").map(drop);
    "read the memory of the parent": Succeed, Refused, [], |aims| {
        open_and_close(&c(format!("/proc/{}/mem", aims.parent)), libc::O_RDONLY)
    }, std: |aims| File::open(format!("/proc/{}/mem", aims.parent)).map(drop);
    "read the environment of a sibling": Succeed, Refused, [], |aims| {
        open_and_close(&c(format!("/proc/{}/environ", aims.sibling())), libc::O_RDONLY)
    }, std: |aims| File::open(format!("/proc/{}/environ", aims.sibling())).map(drop);
    "open a descriptor of another process": Succeed, Refused, [], |aims| {
        open_and_close(&c(format!("/proc/{}/fd/0", aims.victim)), libc::O_PATH)
    };
    "enter the directory of the parent": Succeed, Refused, [], |aims| {
        open_and_close(&c(format!("/proc/{}/cwd/.", aims.parent)), libc::O_RDONLY | libc::O_DIRECTORY)
    };
    "open without reading": Succeed, Refused, [Paths Network], |aims| open_and_close(&path(aims, "file"), libc::O_PATH),
        std: |aims| OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(aims.path("file")).map(drop);
    "openat2": Succeed, Unknown, [], |aims| {
        let how = [libc::O_RDONLY as u64, 0, 0];
        close_it(sys!(SYS_openat2, HERE, path(aims, "file").as_ptr(), of(&how), 24))
    };
    "overwrite a file": Change, Refused, [Paths], |aims| {
        let file = opened(&path(aims, "file"), libc::O_WRONLY | libc::O_TRUNC, 0)?;
        sys!(SYS_write, file, at(b"x"), 1)?;
        close(file);
        Ok(())
    }, std: |aims| fs::write(aims.path("file"), "x");
    "append to a file": Change, Refused, [Paths], |aims| {
        let file = opened(&path(aims, "file"), libc::O_WRONLY | libc::O_APPEND, 0)?;
        sys!(SYS_write, file, at(b"x"), 1)?;
        close(file);
        Ok(())
    }, std: |aims| OpenOptions::new().append(true).open(aims.path("file"))?.write_all(b"x");
    "create a file": Change, Refused, [Paths], |aims| {
        close_it(opened(&path(aims, "new"), libc::O_CREAT | libc::O_WRONLY, 0o600))
    }, std: |aims| File::create(random(aims)).map(drop);
    "create a setuid file": Change, Refused, [], |aims| {
        close_it(opened(&path(aims, "new"), libc::O_CREAT | libc::O_WRONLY, 0o4755))
    }, std: |aims| OpenOptions::new().create_new(true).write(true).mode(0o4755).open(random(aims)).map(drop);
    "create a setgid file": Change, Refused, [], |aims| {
        close_it(opened(&path(aims, "new"), libc::O_CREAT | libc::O_WRONLY, 0o2755))
    };
    "create a file without a name": Succeed, Refused, [Paths], |aims| {
        close_it(opened(&path(aims, ""), libc::O_TMPFILE | libc::O_WRONLY, 0o600))
    };
    "truncate a file": Change, Refused, [Paths], |aims| done(sys!(SYS_truncate, path(aims, "file").as_ptr(), 1)),
        std: |aims| OpenOptions::new().write(true).open(aims.path("file"))?.set_len(1);
    "remove a file": Change, Refused, [Paths], |aims| done(sys!(SYS_unlinkat, HERE, path(aims, "file").as_ptr(), 0)),
        std: |aims| fs::remove_file(aims.path("file"));
    "create a directory": Change, Refused, [Paths], |aims| done(sys!(SYS_mkdirat, HERE, path(aims, "new").as_ptr(), 0o700)),
        std: |aims| fs::create_dir(random(aims));
    "remove a directory": Change, Refused, [Paths], |aims| {
        done(sys!(SYS_unlinkat, HERE, path(aims, "empty").as_ptr(), libc::AT_REMOVEDIR))
    }, std: |aims| fs::remove_dir(aims.path("empty"));
    "rename a file": Change, Refused, [Paths], |aims| {
        done(sys!(SYS_renameat2, HERE, path(aims, "file").as_ptr(), HERE, path(aims, "new").as_ptr(), 0))
    }, std: |aims| fs::rename(aims.path("file"), random(aims));
    "rename a directory": Change, Refused, [Paths], |aims| {
        done(sys!(SYS_renameat2, HERE, path(aims, "full").as_ptr(), HERE, path(aims, "new").as_ptr(), 0))
    }, std: |aims| fs::rename(aims.path("full"), random(aims));
    "change permissions": Change, Refused, [], |aims| {
        done(sys!(SYS_fchmodat, HERE, path(aims, "file").as_ptr(), 0o4777))
    }, std: |aims| fs::set_permissions(aims.path("file"), fs::Permissions::from_mode(0o4777));
    "fchmodat2": BeAnswered, Refused, [], |aims| {
        done(call(452, [HERE as usize, path(aims, "file").as_ptr().addr(), 0o4777, 0]))
    };
    "change the owner": Succeed, Refused, [], |aims| {
        done(sys!(SYS_fchownat, HERE, path(aims, "file").as_ptr(), own_uid(), own_gid(), 0))
    }, std: |aims| std::os::unix::fs::chown(aims.path("file"), Some(own_uid()), Some(own_gid()));
    "change times": Change, Refused, [], |aims| {
        let times = [[1_i64, 0], [1, 0]];
        done(sys!(SYS_utimensat, HERE, path(aims, "file").as_ptr(), of(&times), 0))
    };
    "set an attribute": BeAnswered, Refused, [], |aims| {
        done(sys!(SYS_setxattr, path(aims, "file").as_ptr(), c"user.x".as_ptr(), at(b"x"), 1, 0))
    };
    "read an attribute": Be(&[libc::ENODATA, libc::EOPNOTSUPP]), Refused, [], |aims| {
        done(sys!(SYS_getxattr, path(aims, "file").as_ptr(), c"user.x".as_ptr(), 0, 0))
    };
    "remove an attribute": Be(&[libc::ENODATA, libc::EOPNOTSUPP]), Refused, [], |aims| {
        done(sys!(SYS_removexattr, path(aims, "file").as_ptr(), c"user.x".as_ptr()))
    };
    "list attributes": Succeed, Refused, [], |aims| done(sys!(SYS_listxattr, path(aims, "file").as_ptr(), 0, 0));
    "stat": Succeed, Refused, [Paths Network], |aims| {
        // SAFETY: all zeros is a valid value.
        let data: libc::stat = unsafe { mem::zeroed() };
        done(sys!(SYS_newfstatat, HERE, path(aims, "file").as_ptr(), of(&data), 0))
    }, std: |aims| fs::metadata(aims.path("file")).map(drop);
    "statx": Succeed, Refused, [Paths Network], |aims| {
        let data = [0_u64; 64];
        done(sys!(SYS_statx, HERE, path(aims, "file").as_ptr(), 0, libc::STATX_ALL, of(&data)))
    }, std: |aims| fs::symlink_metadata(aims.path("file")).map(drop);
    "statfs": Succeed, Refused, [Paths Network], |aims| {
        let data = [0_u64; 64];
        done(sys!(SYS_statfs, path(aims, "file").as_ptr(), of(&data)))
    };
    "access": Succeed, Refused, [Paths Network], |aims| {
        done(sys!(SYS_faccessat, HERE, path(aims, "file").as_ptr(), libc::R_OK))
    };
    "readlink": Succeed, Refused, [Paths Network], |aims| {
        let mut text = [0_u8; 16];
        done(sys!(SYS_readlinkat, HERE, path(aims, "link").as_ptr(), text.as_mut_ptr(), text.len()))
    }, std: |aims| fs::read_link(aims.path("link")).map(drop);
    "list a directory": Succeed, Refused, [Paths], |aims| {
        let directory = opened(&path(aims, ""), libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
        let mut entries = [0_u8; 4096];
        let len = sys!(SYS_getdents64, directory, entries.as_mut_ptr(), entries.len());
        close(directory);
        is(len? > 0)
    }, std: |aims| is(fs::read_dir(aims.path(""))?.count() > 0);
    "change the directory": Succeed, Refused, [Paths Network], |_| done(sys!(SYS_chdir, c"/".as_ptr())),
        std: |_| env::set_current_dir("/");
    "ask for the directory": Succeed, Refused, [Paths Network], |_| {
        let mut text = [0_u8; 4096];
        done(sys!(SYS_getcwd, text.as_mut_ptr(), text.len()))
    }, std: |_| env::current_dir().map(drop);
    "hard link": Change, Refused, [], |aims| {
        done(sys!(SYS_linkat, HERE, path(aims, "file").as_ptr(), HERE, path(aims, "new").as_ptr(), 0))
    }, std: |aims| fs::hard_link(aims.path("file"), random(aims));
    "symbolic link": Change, Refused, [], |aims| {
        done(sys!(SYS_symlinkat, path(aims, "file").as_ptr(), HERE, path(aims, "new").as_ptr()))
    }, std: |aims| std::os::unix::fs::symlink("/etc/shadow", random(aims));
    "named pipe": Change, Refused, [], |aims| {
        done(sys!(SYS_mknodat, HERE, path(aims, "new").as_ptr(), libc::S_IFIFO | 0o600, 0))
    };
    "device": SucceedAsRoot, Refused, [], |aims| {
        done(sys!(SYS_mknodat, HERE, path(aims, "new").as_ptr(), libc::S_IFCHR | 0o600, 0x103))
    };
    "anonymous file": Succeed, Refused, [], |_| close_it(sys!(SYS_memfd_create, c"x".as_ptr(), 0));
    "handle of a file": BeAnswered, Refused, [], |aims| {
        let mut handle = [0_u32; 64];
        handle[0] = 128;
        let mut mount = 0_i32;
        done(sys!(SYS_name_to_handle_at, HERE, path(aims, "file").as_ptr(), of(&handle), &raw mut mount, 0))
    };
    "file by its handle": Be(&[libc::EPERM, libc::EBADF, libc::EFAULT, libc::ESTALE]), Death("open_by_handle_at"), [], |_| {
        done(sys!(SYS_open_by_handle_at, NO, 0, 0))
    };
    "watch files": Succeed, Refused, [], |_| close_it(sys!(SYS_inotify_init1, libc::IN_CLOEXEC));
    "watch all files": SucceedAsRoot, Refused, [], |_| close_it(sys!(SYS_fanotify_init, 0, 0));
    "splice": Succeed, Refused, [], |_| {
        let (from, to) = (pipe()?, pipe()?);
        let written = sys!(SYS_write, from[1], at(b"x"), 1);
        let result = sys!(SYS_splice, from[0], 0, to[1], 0, 1, 0);
        close_both(from);
        close_both(to);
        written?;
        done(result)
    };

    // ---- sockets
    "connect": Change, Refused, [Network], |aims| connect(libc::AF_INET, &on_this_machine(aims.tcp), 16),
        std: |aims| TcpStream::connect((Ipv4Addr::LOCALHOST, aims.tcp)).map(drop);
    "send a datagram": Change, Refused, [Network], |aims| {
        send(socket(libc::AF_INET, libc::SOCK_DGRAM)?, &on_this_machine(aims.udp), 16)
    }, std: |aims| UdpSocket::bind("127.0.0.1:0")?.send_to(b"x", (Ipv4Addr::LOCALHOST, aims.udp)).map(drop);
    "listen": Succeed, Refused, [Network], |_| {
        let socket = socket(libc::AF_INET, libc::SOCK_STREAM)?;
        sys!(SYS_bind, socket, of(&on_this_machine(0)), 16)?;
        let result = sys!(SYS_listen, socket, 1);
        close(socket);
        done(result)
    }, std: |_| TcpListener::bind("127.0.0.1:0").map(drop);
    "a socket of IPv6": BeAnswered, Refused, [Network], |_| close_it(socket(libc::AF_INET6, libc::SOCK_STREAM));
    "connect to a Unix socket": Change, Refused, [], |aims| {
        let (address, len) = named_in(aims, "stream");
        connect(libc::AF_UNIX, &address, len)
    }, std: |aims| UnixStream::connect(aims.path("stream")).map(drop);
    "connect to an abstract socket": Change, Refused, [], |aims| {
        let (address, len) = abstract_name(aims);
        connect(libc::AF_UNIX, &address, len)
    }, std: |aims| UnixStream::connect_addr(&SocketAddr::from_abstract_name(aims.name())?).map(drop);
    "datagram to a Unix socket": Change, Refused, [], |aims| {
        let (address, len) = named_in(aims, "datagram");
        send(socket(libc::AF_UNIX, libc::SOCK_DGRAM)?, &address, len)
    }, std: |aims| UnixDatagram::unbound()?.send_to(b"x", aims.path("datagram")).map(drop);
    "datagram to a Unix socket from one of a pair": Change, Refused, [], |aims| {
        let [one, other] = pair(libc::SOCK_DGRAM)?;
        let (address, len) = named_in(aims, "datagram");
        let result = send(one, &address, len);
        close(other);
        result
    }, std: |aims| UnixDatagram::pair()?.0.send_to(b"x", aims.path("datagram")).map(drop);
    "message to a Unix socket from one of a pair": Change, Refused, [], |aims| {
        let [one, other] = pair(libc::SOCK_DGRAM)?;
        let (address, len) = named_in(aims, "datagram");
        let result = send_message(one, &address, len);
        close(other);
        result
    };
    "connect one of a pair to a Unix socket": Change, Refused, [], |aims| {
        let [one, other] = pair(libc::SOCK_DGRAM)?;
        let (address, len) = named_in(aims, "datagram");
        let result = sys!(SYS_connect, one, of(&address), len).and_then(|_| sys!(SYS_write, one, at(b"x"), 1));
        close_both([one, other]);
        done(result)
    };
    "listen at a Unix socket": Change, Refused, [], |aims| {
        let socket = socket(libc::AF_UNIX, libc::SOCK_STREAM)?;
        let (address, len) = named_in(aims, "new");
        let result = sys!(SYS_bind, socket, of(&address), len);
        close(socket);
        done(result)
    }, std: |aims| UnixListener::bind(random(aims)).map(drop);
    "netlink": Succeed, Refused, [], |_| close_it(socket(libc::AF_NETLINK, libc::SOCK_RAW));
    "raw socket": SucceedAsRoot, Refused, [], |_| {
        close_it(sys!(SYS_socket, libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP))
    };
    "packet socket": SucceedAsRoot, Refused, [], |_| close_it(socket(libc::AF_PACKET, libc::SOCK_RAW));
    "socket of virtual machines": BeAnswered, Refused, [], |_| close_it(socket(libc::AF_VSOCK, libc::SOCK_STREAM));
    "socket of the kernel's ciphers": BeAnswered, Refused, [], |_| close_it(socket(libc::AF_ALG, libc::SOCK_SEQPACKET));
    "socket of another protocol": BeAnswered, Refused, [], |_| {
        close_it(sys!(SYS_socket, libc::AF_INET, libc::SOCK_STREAM, 262 /* IPPROTO_MPTCP */))
    };
    "rules of the firewall": BeAnswered, Refused, [], |_| {
        let socket = socket(libc::AF_INET, libc::SOCK_STREAM)?;
        let result = sys!(SYS_setsockopt, socket, libc::IPPROTO_IP, 64 /* IPT_SO_SET_REPLACE */, 0, 0);
        close(socket);
        done(result)
    };
    "rules of the firewall for IPv6": BeAnswered, Refused, [], |_| {
        let socket = socket(libc::AF_INET6, libc::SOCK_STREAM)?;
        let result = sys!(SYS_setsockopt, socket, libc::IPPROTO_IPV6, 64 /* IP6T_SO_SET_REPLACE */, 0, 0);
        close(socket);
        done(result)
    };
    "options of a socket": Succeed, Refused, [Network], |_| {
        let (socket, on) = (socket(libc::AF_INET, libc::SOCK_STREAM)?, 1_i32);
        let result = [(libc::SOL_SOCKET, libc::SO_REUSEADDR), (libc::IPPROTO_TCP, libc::TCP_NODELAY), (libc::IPPROTO_IP, libc::IP_TTL)]
            .into_iter()
            .try_for_each(|(level, name)| done(sys!(SYS_setsockopt, socket, level, name, of(&on), 4)));
        close(socket);
        result
    };
    "pair of sockets": Succeed, Refused, [Threads Processes Network], |_| pair(libc::SOCK_STREAM).map(close_both),
        std: |_| UnixStream::pair().map(drop);

    // ---- processes and threads
    "start a process": Succeed, Refused, [Processes], |_| start_and_wait(libc::SYS_clone, libc::SIGCHLD),
        std: |_| Command::new("/bin/true").status().map(drop);
    "start a process in another name space": BeAnswered, Refused, [], |_| {
        start_and_wait(libc::SYS_clone, libc::SIGCHLD | libc::CLONE_NEWUSER)
    };
    "start a process that is its parent's": Succeed, Refused, [], |_| {
        done(start(libc::SYS_clone, (libc::SIGCHLD | libc::CLONE_PARENT) as usize))
    };
    "clone3": Succeed, Unknown, [], |_| {
        let mut how = [0_u64; 8];
        // The fifth is the signal at its end.
        how[4] = libc::SIGCHLD as u64;
        let child = sys!(SYS_clone3, of(&how), 64)?;
        if child == 0 {
            // SAFETY: ends the copy.
            unsafe { libc::_exit(0) };
        }
        done(sys!(SYS_wait4, child, 0, 0, 0))
    };
    "run a program": Be(&[libc::ENOENT]), Refused, [Processes], |aims| {
        let nothing = [0_usize; 1];
        done(sys!(SYS_execve, no_such(aims).as_ptr(), of(&nothing), of(&nothing)))
    };
    "run an open program": Be(&[libc::EBADF]), Refused, [Processes], |_| {
        let nothing = [0_usize; 1];
        done(sys!(SYS_execveat, 999, c"".as_ptr(), of(&nothing), of(&nothing), libc::AT_EMPTY_PATH))
    };
    "start a thread": Succeed, Refused, [Threads], |_| {
        let all = libc::CLONE_THREAD | libc::CLONE_VM | libc::CLONE_SIGHAND | libc::CLONE_FS | libc::CLONE_FILES;
        done(start(libc::SYS_clone, all as usize))
    }, std: |_| thread::Builder::new().spawn(|| {}).map(|started| drop(started.join()));
    "leave the session": SucceedInChild, Refused, [], |_| done(sys!(SYS_setsid));
    "leave the process group": SucceedInChild, Refused, [], |_| done(sys!(SYS_setpgid, 0, 0));
    "set the user": Succeed, Refused, [], |_| done(sys!(SYS_setuid, own_uid()));
    "set the effective user": Succeed, Refused, [], |_| done(sys!(SYS_setresuid, NO, own_uid(), NO));
    "set the group": Succeed, Refused, [], |_| done(sys!(SYS_setgid, own_gid()));
    "set the groups": SucceedAsRoot, Refused, [], |_| {
        let mut groups = [0_u32; 64];
        let len = sys!(SYS_getgroups, groups.len(), groups.as_mut_ptr())?;
        done(sys!(SYS_setgroups, len, groups.as_ptr()))
    };
    "set capabilities": Succeed, Refused, [], |_| {
        let who = [0x2008_0522_u32, 0];
        let mut sets = [0_u32; 6];
        sys!(SYS_capget, of(&who), sets.as_mut_ptr())?;
        done(sys!(SYS_capset, of(&who), sets.as_ptr()))
    };
    "set the personality": Succeed, Refused, [], |_| done(sys!(SYS_personality, u32::MAX));
    "keep its memory open to others": Succeed, Refused, [], |_| done(sys!(SYS_prctl, libc::PR_SET_DUMPABLE, 1));
    "outlive the parent": Succeed, Refused, [], |_| done(sys!(SYS_prctl, libc::PR_SET_PDEATHSIG, 0));
    "outlive the parent by another signal": Succeed, Refused, [], |_| {
        sys!(SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGWINCH)?;
        done(sys!(SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL))
    };
    "adopt orphans": Succeed, Refused, [], |_| done(sys!(SYS_prctl, libc::PR_SET_CHILD_SUBREAPER, 0));
    "install a filter": Succeed, Refused, [], |_| {
        let action: u32 = libc::SECCOMP_RET_ALLOW;
        done(sys!(SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, of(&action)))
    };
    "install a filter by prctl": Be(&[libc::EINVAL, libc::EFAULT]), Refused, [], |_| {
        done(sys!(SYS_prctl, libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, 0))
    };
    "make rules": BeAnswered, Refused, [], |_| done(sys!(SYS_landlock_create_ruleset, 0, 0, 1));
    "enter rules": BeAnswered, Refused, [], |_| done(sys!(SYS_landlock_restrict_self, NO, 0));

    // ---- signals and other processes
    "kill": Change, Refused, [], |aims| end_victim(aims, sys!(SYS_kill, aims.victim, libc::SIGKILL));
    "terminate a process group": Change, Refused, [], |aims| {
        end_victim(aims, sys!(SYS_kill, -(aims.victim as isize), libc::SIGTERM))
    };
    "tkill": Change, Refused, [], |aims| end_victim(aims, sys!(SYS_tkill, aims.victim, libc::SIGTERM));
    "tgkill": Change, Refused, [], |aims| end_victim(aims, sys!(SYS_tgkill, aims.victim, aims.victim, libc::SIGTERM));
    "rt_sigqueueinfo": Change, Refused, [], |aims| {
        end_victim(aims, sys!(SYS_rt_sigqueueinfo, aims.victim, libc::SIGTERM, of(&info())))
    };
    "rt_tgsigqueueinfo": Change, Refused, [], |aims| {
        end_victim(aims, sys!(SYS_rt_tgsigqueueinfo, aims.victim, aims.victim, libc::SIGTERM, of(&info())))
    };
    "pidfd_open": Succeed, Refused, [], |aims| close_it(sys!(SYS_pidfd_open, aims.victim, 0));
    "pidfd_send_signal": Change, Refused, [], |aims| {
        let victim = sys!(SYS_pidfd_open, aims.victim, 0)?;
        let sent = sys!(SYS_pidfd_send_signal, victim, libc::SIGTERM, 0, 0);
        close(victim);
        end_victim(aims, sent)
    };
    "signal by the kernel": Change, Refused, [], |aims| let_the_kernel_send(aims, aims.victim);
    "an owner of signals": Succeed, Refused, [], |aims| {
        let both = pipe()?;
        let result = sys!(SYS_fcntl, both[0], libc::F_SETOWN, aims.parent);
        close_both(both);
        done(result)
    };
    "signals of a descriptor": Succeed, Refused, [], |_| {
        let both = pipe()?;
        let result = sys!(SYS_fcntl, both[0], libc::F_SETFL, libc::O_ASYNC);
        close_both(both);
        done(result)
    };
    "signals of a descriptor by ioctl": Succeed, Refused, [], |_| {
        let (both, on) = (pipe()?, 1_i32);
        let result = sys!(SYS_ioctl, both[0], 0x5452 /* FIOASYNC */, of(&on));
        close_both(both);
        done(result)
    };
    // A signal of the number 0 only asks whether it might be sent.
    "signal to the parent": Succeed, Refused, [], |aims| done(sys!(SYS_kill, aims.parent, 0));
    "signal to the parent's thread": Succeed, Refused, [], |aims| done(sys!(SYS_tkill, aims.parent, 0));
    "signal to a sibling": Succeed, Refused, [], |aims| done(sys!(SYS_kill, aims.sibling(), 0));
    "signal to all": Succeed, Refused, [Processes], |_| done(sys!(SYS_kill, NO, 0));
    "signal to its own group": Succeed, Refused, [Processes], |_| done(sys!(SYS_kill, 0, 0));
    "signal by a number that is cut off": Succeed, Refused, [], |aims| {
        done(sys!(SYS_kill, (1 << 32) | aims.parent as usize, 0))
    };
    "read limits of the parent": Succeed, Refused, [], |aims| {
        let limit = [0_u64; 2];
        done(sys!(SYS_prlimit64, aims.parent, libc::RLIMIT_NOFILE, 0, of(&limit)))
    };
    "change limits of another process": Change, Refused, [], |aims| {
        let limit = [16_u64; 2];
        done(sys!(SYS_prlimit64, aims.victim, libc::RLIMIT_NOFILE, of(&limit), 0))
    };
    "change its own limits": Succeed, Refused, [], |_| {
        let limit = [0_u64; 2];
        sys!(SYS_prlimit64, 0, libc::RLIMIT_CORE, 0, of(&limit))?;
        done(sys!(SYS_prlimit64, 0, libc::RLIMIT_CORE, of(&limit), 0))
    };
    "change its own limits by setrlimit": Succeed, Refused, [], |_| {
        let limit = [0_u64; 2];
        sys!(SYS_prlimit64, 0, libc::RLIMIT_CORE, 0, of(&limit))?;
        done(sys!(SYS_setrlimit, libc::RLIMIT_CORE, of(&limit)))
    };
    "change the priority of another process": Change, Refused, [], |aims| {
        done(sys!(SYS_setpriority, libc::PRIO_PROCESS, aims.victim, 15))
    };
    "change its own priority": Succeed, Refused, [], |_| {
        // The kernel answers with 20 minus the number.
        let now = sys!(SYS_getpriority, libc::PRIO_PROCESS, 0)?;
        done(sys!(SYS_setpriority, libc::PRIO_PROCESS, 0, 20_isize - now as isize))
    };
    "change how another process is scheduled": Change, Refused, [], |aims| {
        let priority = 0_i32;
        done(sys!(SYS_sched_setscheduler, aims.victim, libc::SCHED_BATCH, of(&priority)))
    };
    "change where another process runs": Succeed, Refused, [], |aims| {
        let all = [u64::MAX; 16];
        done(sys!(SYS_sched_setaffinity, aims.victim, mem::size_of_val(&all), all.as_ptr()))
    };
    "change how another process reads": Succeed, Refused, [], |aims| {
        done(sys!(SYS_ioprio_set, 1, aims.victim, 2 << 13))
    };
    "compare with the parent": BeAnswered, Refused, [], |aims| done(sys!(SYS_kcmp, process::id(), aims.parent, 0, 0, 0));
    "advise another process": Be(&[libc::EBADF]), Refused, [], |_| done(sys!(SYS_process_madvise, NO, 0, 0, 0, 0));
    "take pages of another process": Succeed, Refused, [], |aims| {
        done(sys!(SYS_move_pages, aims.victim, 0, 0, 0, 0, 0))
    };
    "replace the handler of SIGSYS": Succeed, Refused, [], |_| {
        let mut old = [0_usize; 4];
        sys!(SYS_rt_sigaction, libc::SIGSYS, 0, old.as_mut_ptr(), 8)?;
        sys!(SYS_rt_sigaction, libc::SIGSYS, of(&action()), 0, 8)?;
        done(sys!(SYS_rt_sigaction, libc::SIGSYS, of(&old), 0, 8))
    };

    // ---- terminals and things with names
    "type into a terminal": Be(&[libc::ENOTTY]), Refused, [], |_| {
        let both = pipe()?;
        let result = sys!(SYS_ioctl, both[0], libc::TIOCSTI, at(b"x"));
        close_both(both);
        done(result)
    };
    "take a terminal": Be(&[libc::ENOTTY]), Refused, [], |_| {
        let both = pipe()?;
        let result = sys!(SYS_ioctl, both[0], libc::TIOCSCTTY, 0);
        close_both(both);
        done(result)
    };
    // Of no page.
    "declare memory broken": BeAnswered, Refused, [], |_| done(sys!(SYS_madvise, 0, 0, 100 /* MADV_HWPOISON */));
    "move those who sleep on shared memory": Succeed, Refused, [], |_| {
        let words = [0_u32; 2];
        done(sys!(SYS_futex, of(&words[0]), libc::FUTEX_CMP_REQUEUE, 0, 0, of(&words[1]), 0))
    };
    "shared memory": Succeed, Refused, [], |_| {
        let id = sys!(SYS_shmget, libc::IPC_PRIVATE, 4096, 0o600)?;
        done(sys!(SYS_shmctl, id, libc::IPC_RMID, 0))
    };
    "semaphores": Succeed, Refused, [], |_| {
        let id = sys!(SYS_semget, libc::IPC_PRIVATE, 1, 0o600)?;
        done(sys!(SYS_semctl, id, 0, libc::IPC_RMID, 0))
    };
    "message queue": Succeed, Refused, [], |_| {
        let id = sys!(SYS_msgget, libc::IPC_PRIVATE, 0o600)?;
        done(sys!(SYS_msgctl, id, libc::IPC_RMID, 0))
    };
    "message queue with a name": Succeed, Refused, [], |_| {
        let name = CString::new(format!("pool-test-{}", process::id())).expect("it has no zero");
        let queue = sys!(SYS_mq_open, name.as_ptr(), libc::O_CREAT | libc::O_RDWR, 0o600, 0)?;
        close(queue);
        done(sys!(SYS_mq_unlink, name.as_ptr()))
    };
    "a call that is not known yet": Be(&[libc::ENOSYS]), Refused, [], |_| done(call(4000, []));
    "the kernel's messages": BeAnswered, Refused, [], |_| done(sys!(SYS_syslog, 10, 0, 0));
    "quotas": BeAnswered, Refused, [], |aims| done(sys!(SYS_quotactl, 0, path(aims, "file").as_ptr(), 0, 0));

    // ---- what ends the worker
    "ptrace": Succeed, Death("ptrace"), [], |aims| {
        sys!(SYS_ptrace, libc::PTRACE_ATTACH, aims.victim, 0, 0)?;
        sys!(SYS_wait4, aims.victim, 0, libc::__WALL, 0)?;
        done(sys!(SYS_ptrace, libc::PTRACE_DETACH, aims.victim, 0, 0))
    };
    "ptrace while SIGSYS is blocked": Be(&[libc::ESRCH, libc::EPERM]), NamelessDeath, [], |_| {
        block_sigsys()?;
        done(sys!(SYS_ptrace, libc::PTRACE_ATTACH, NO, 0, 0))
    };
    "read memory of the parent": Succeed, Death("process_vm_readv"), [], |aims| {
        let mut number = 0_u64;
        let (ours, theirs) = (part((&raw mut number).addr() as u64, 8), part(aims.number, 8));
        sys!(SYS_process_vm_readv, aims.parent, of(&ours), 1, of(&theirs), 1, 0)?;
        // SAFETY: a variable of ours, which the kernel has written.
        is(unsafe { ptr::read_volatile(&raw const number) } == NUMBER_THERE)
    };
    "write into memory of another process": Change, Death("process_vm_writev"), [], |aims| {
        write_into(aims.victim, aims.address)
    };
    "write into memory of the parent": Be(&[libc::EFAULT]), Death("process_vm_writev"), [], |aims| write_into(aims.parent, 8);
    "write into memory of a sibling": Be(&[libc::EFAULT]), Death("process_vm_writev"), [], |aims| write_into(aims.sibling(), 8);
    "take a descriptor": Be(&[libc::EBADF]), Death("pidfd_getfd"), [], |_| done(sys!(SYS_pidfd_getfd, NO, 0, 0));
    "bpf": BeAnswered, Death("bpf"), [], |_| done(sys!(SYS_bpf, 0, 0, 0));
    "perf_event_open": BeAnswered, Death("perf_event_open"), [], |_| done(sys!(SYS_perf_event_open, 0, 0, NO, NO, 0));
    "userfaultfd": BeAnswered, Death("userfaultfd"), [], |_| close_it(sys!(SYS_userfaultfd, libc::O_CLOEXEC));
    "io_uring_setup": BeAnswered, Death("io_uring_setup"), [], |_| {
        let how = [0_u32; 32];
        close_it(sys!(SYS_io_uring_setup, 1, of(&how)))
    };
    "io_uring_enter": Be(&[libc::EBADF, libc::ENOSYS]), Death("io_uring_enter"), [], |_| {
        done(sys!(SYS_io_uring_enter, NO, 0, 0, 0, 0, 0))
    };
    "io_uring_register": BeAnswered, Death("io_uring_register"), [], |_| done(sys!(SYS_io_uring_register, NO, 99, 0, 0));
    "add_key": BeAnswered, Death("add_key"), [], |_| done(sys!(SYS_add_key, 0, 0, 0, 0, 0));
    "request_key": BeAnswered, Death("request_key"), [], |_| done(sys!(SYS_request_key, 0, 0, 0, 0));
    "keyctl": BeAnswered, Death("keyctl"), [], |_| done(sys!(SYS_keyctl, 999, 0, 0, 0, 0));
    "mount": BeAnswered, Death("mount"), [], |aims| {
        done(sys!(SYS_mount, c"none".as_ptr(), no_such(aims).as_ptr(), c"tmpfs".as_ptr(), 0, 0))
    };
    "umount": BeAnswered, Death("umount2"), [], |aims| done(sys!(SYS_umount2, path(aims, "empty").as_ptr(), 0));
    "pivot_root": BeAnswered, Death("pivot_root"), [], |aims| {
        done(sys!(SYS_pivot_root, no_such(aims).as_ptr(), no_such(aims).as_ptr()))
    };
    "chroot": Be(&[libc::ENOENT, libc::EPERM]), Death("chroot"), [], |aims| done(sys!(SYS_chroot, no_such(aims).as_ptr()));
    "move_mount": BeAnswered, Death("move_mount"), [], |_| done(sys!(SYS_move_mount, NO, 0, NO, 0, u32::MAX));
    "open_tree": BeAnswered, Death("open_tree"), [], |_| done(sys!(SYS_open_tree, NO, 0, u32::MAX));
    "mount_setattr": BeAnswered, Death("mount_setattr"), [], |_| done(sys!(SYS_mount_setattr, NO, 0, u32::MAX, 0, 0));
    "fsopen": BeAnswered, Death("fsopen"), [], |_| done(sys!(SYS_fsopen, 0, u32::MAX));
    "fsconfig": BeAnswered, Death("fsconfig"), [], |_| done(sys!(SYS_fsconfig, NO, 0, 0, 0, 0));
    "fsmount": BeAnswered, Death("fsmount"), [], |_| done(sys!(SYS_fsmount, NO, u32::MAX, 0));
    "fspick": BeAnswered, Death("fspick"), [], |_| done(sys!(SYS_fspick, NO, 0, u32::MAX));
    "unshare": Succeed, Death("unshare"), [], |_| done(sys!(SYS_unshare, 0));
    "setns": Be(&[libc::EBADF]), Death("setns"), [], |_| done(sys!(SYS_setns, NO, 0));
    "init_module": BeAnswered, Death("init_module"), [], |_| done(sys!(SYS_init_module, 0, 0, 0));
    "finit_module": BeAnswered, Death("finit_module"), [], |_| done(sys!(SYS_finit_module, NO, 0, 0));
    "delete_module": BeAnswered, Death("delete_module"), [], |_| {
        done(sys!(SYS_delete_module, c"no such module".as_ptr(), libc::O_NONBLOCK))
    };
    "kexec_load": BeAnswered, Death("kexec_load"), [], |_| done(sys!(SYS_kexec_load, 0, 99, 0, NO));
    // The magic numbers are wrong.
    "reboot": Be(&[libc::EINVAL, libc::EPERM]), Death("reboot"), [], |_| done(sys!(SYS_reboot, 0, 0, 0, 0));
    "swapon": Be(&[libc::ENOENT, libc::EPERM]), Death("swapon"), [], |aims| done(sys!(SYS_swapon, no_such(aims).as_ptr(), 0));
    "swapoff": Be(&[libc::ENOENT, libc::EPERM]), Death("swapoff"), [], |aims| done(sys!(SYS_swapoff, no_such(aims).as_ptr()));
    "acct": BeAnswered, Death("acct"), [], |aims| done(sys!(SYS_acct, no_such(aims).as_ptr()));
    "settimeofday": Be(&[libc::EINVAL, libc::EPERM]), Death("settimeofday"), [], |_| {
        let time = [0_i64, -1];
        done(sys!(SYS_settimeofday, of(&time), 0))
    };
    "clock_settime": Be(&[libc::EINVAL, libc::EPERM]), Death("clock_settime"), [], |_| {
        let time = [0_i64, -1];
        done(sys!(SYS_clock_settime, libc::CLOCK_REALTIME, of(&time)))
    };
    "sethostname": Be(&[libc::EINVAL, libc::EPERM]), Death("sethostname"), [], |_| done(sys!(SYS_sethostname, 0, NO));
    "setdomainname": Be(&[libc::EINVAL, libc::EPERM]), Death("setdomainname"), [], |_| done(sys!(SYS_setdomainname, 0, NO));
};

#[cfg(target_arch = "x86_64")]
const HERE_ONLY: &[Attempt] = attempts! {
    "open": Succeed, Refused, [Paths], |aims| close_it(sys!(SYS_open, path(aims, "file").as_ptr(), libc::O_RDONLY, 0));
    "open a new setuid file": Change, Refused, [], |aims| {
        close_it(sys!(SYS_open, path(aims, "new").as_ptr(), libc::O_CREAT | libc::O_WRONLY, 0o6755))
    };
    "creat": Change, Refused, [Paths], |aims| close_it(sys!(SYS_creat, path(aims, "new").as_ptr(), 0o600));
    "creat a setuid file": Change, Refused, [], |aims| close_it(sys!(SYS_creat, path(aims, "new").as_ptr(), 0o4755));
    "old stat": Succeed, Refused, [Paths Network], |aims| {
        // SAFETY: all zeros is a valid value.
        let data: libc::stat = unsafe { mem::zeroed() };
        done(sys!(SYS_stat, path(aims, "file").as_ptr(), of(&data)))
    };
    "mkdir": Change, Refused, [Paths], |aims| done(sys!(SYS_mkdir, path(aims, "new").as_ptr(), 0o700));
    "rmdir": Change, Refused, [Paths], |aims| done(sys!(SYS_rmdir, path(aims, "empty").as_ptr()));
    "unlink": Change, Refused, [Paths], |aims| done(sys!(SYS_unlink, path(aims, "file").as_ptr()));
    "rename": Change, Refused, [Paths], |aims| {
        done(sys!(SYS_rename, path(aims, "file").as_ptr(), path(aims, "new").as_ptr()))
    };
    "link": Change, Refused, [], |aims| done(sys!(SYS_link, path(aims, "file").as_ptr(), path(aims, "new").as_ptr()));
    "symlink": Change, Refused, [], |aims| {
        done(sys!(SYS_symlink, path(aims, "file").as_ptr(), path(aims, "new").as_ptr()))
    };
    "mknod": Change, Refused, [], |aims| {
        done(sys!(SYS_mknod, path(aims, "new").as_ptr(), libc::S_IFIFO | 0o600, 0))
    };
    "chmod": Change, Refused, [], |aims| done(sys!(SYS_chmod, path(aims, "file").as_ptr(), 0o600));
    "chown": Succeed, Refused, [], |aims| done(sys!(SYS_chown, path(aims, "file").as_ptr(), own_uid(), own_gid()));
    "utime": Change, Refused, [], |aims| {
        let times = [1_i64, 1];
        done(sys!(SYS_utime, path(aims, "file").as_ptr(), of(&times)))
    };
    "fork": Succeed, Refused, [Processes], |_| start_and_wait(libc::SYS_fork, 0);
    "vfork": Succeed, Refused, [Processes], |_| start_and_wait(libc::SYS_vfork, 0);
    "kexec_file_load": BeAnswered, Death("kexec_file_load"), [], |_| done(sys!(SYS_kexec_file_load, NO, NO, 0, 0, NO));
    "iopl": Be(&[libc::EINVAL, libc::ENOSYS]), Death("iopl"), [], |_| done(sys!(SYS_iopl, 99));
    "ioperm": BeAnswered, Death("ioperm"), [], |_| done(sys!(SYS_ioperm, 0x80, 1, 0));
    "modify_ldt": Succeed, Death("modify_ldt"), [], |_| done(sys!(SYS_modify_ldt, 0, 0, 0));
    // The numbers of x32, which the same kernel may know.
    "getpid of x32": BeAnswered, Refused, [], |_| done(call(0x4000_0000 + libc::SYS_getpid, []));
    "open of x32": BeAnswered, Refused, [], |aims| {
        close_it(call(0x4000_0000 + libc::SYS_open, [path(aims, "file").as_ptr().addr(), 0, 0]))
    };
    "ptrace of x32": BeAnswered, Refused, [], |_| done(call(0x4000_0000 + 521, [0, 0, 0, 0]));
    // Without a sandbox, some kernels end the process by SIGSEGV.
    "getpid of i386": Could::BeAnswered, NamelessDeath, [], |_| {
        let pid: u32;
        // SAFETY: it touches no memory.
        unsafe { std::arch::asm!("int 0x80", inlateout("eax") 20_u32 => pid, out("r8") _, out("r9") _, out("r10") _, out("r11") _) };
        is(pid == process::id())
    };
};

#[cfg(not(target_arch = "x86_64"))]
const HERE_ONLY: &[Attempt] = &[];

/// All attempts.
pub(super) fn all() -> impl Iterator<Item = &'static Attempt> {
    EVERYWHERE.iter().chain(HERE_ONLY)
}

pub(super) fn find(name: &str) -> &'static Attempt {
    all()
        .find(|attempt| attempt.name == name)
        .expect("it is in the list")
}

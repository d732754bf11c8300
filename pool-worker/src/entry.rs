//! How a process becomes a worker: before `main`, if its environment says so.
//!
//! One function pointer is placed in `.init_array`, the list of functions that the C runtime calls before `main`.
//! `#[pool_task]` puts its registrations into the same list. A crate is linked before the crates that it depends on, so our
//! entry comes after all registrations; in case a linker orders them otherwise, [`enter`] runs the rest of the list itself
//! before it serves, since it never returns.
//!
//! `std`'s own preparations for `main` have not run at that point. [`serve`] does those of them that a worker needs.

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use std::arch::asm;
use std::env;
use std::ffi::{c_char, c_int};
use std::hint::black_box;
use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::process;

use crate::serve;

/// The environment variable that holds the parent's pid, the worker's index, the token, and the role unless it is `Worker`.
/// Its name contains the version, because two versions of this crate may be linked into one program, and each must only
/// answer its own parent.
pub(crate) const VARIABLE: &str = concat!(
    "POOL_WORKER_",
    env!("CARGO_PKG_VERSION_MAJOR"),
    "_",
    env!("CARGO_PKG_VERSION_MINOR")
);

/// The beginning of that name, which is the same for all versions.
pub(crate) const VARIABLES: &str = "POOL_WORKER_";

/// The content of the variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) parent: u32,
    pub(crate) index: usize,
    pub(crate) token: String,
    pub(crate) role: Role,
}

/// The role of a process that was started this way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Worker,
    /// A worker at whose end all processes that it has started end, too.
    Contained,
    /// The process that forks workers.
    Zygote,
}

const CONTAINED: &str = "contained";
const ZYGOTE: &str = "zygote";

impl Call {
    pub(crate) fn to_variable(&self) -> String {
        let Call {
            parent,
            index,
            token,
            role,
        } = self;
        let call = format!("{parent}:{index}:{token}");
        match role {
            Role::Worker => call,
            Role::Contained => format!("{call}:{CONTAINED}"),
            Role::Zygote => format!("{call}:{ZYGOTE}"),
        }
    }

    pub(crate) fn from_variable(value: &str) -> Option<Call> {
        let mut fields = value.splitn(4, ':');
        Some(Call {
            parent: fields.next()?.parse().ok()?,
            index: fields.next()?.parse().ok()?,
            token: fields.next()?.to_owned(),
            role: match fields.next() {
                None => Role::Worker,
                Some(CONTAINED) => Role::Contained,
                Some(ZYGOTE) => Role::Zygote,
                Some(_) => return None,
            },
        })
    }
}

type Init = extern "C" fn(c_int, *const *const c_char, *const *const c_char);

// Miri calls functions in this section without arguments. Since it can't start processes, it does not need this one.
#[used]
#[cfg_attr(not(miri), unsafe(link_section = ".init_array"))]
static ENTRY: Init = enter;

/// Whether this process was started as a worker but has not become one: its entry did not run, or refused. Such a process
/// must not start workers of its own, since each of them would do the same, endlessly.
pub(crate) fn missed() -> bool {
    // Referring to the entry also keeps the linker from dropping it.
    let _ = black_box(&raw const ENTRY);
    env::var_os(VARIABLE).is_some()
}

extern "C" fn enter(argc: c_int, argv: *const *const c_char, envp: *const *const c_char) {
    let Some(value) = env::var_os(VARIABLE) else {
        if env::var_os(NODE).is_some() && !secure() {
            run_rest_of_list(argc, argv, envp);
            enter_as_node();
        }
        return;
    };
    // A setuid program must not do what its caller's environment says.
    if secure() {
        return;
    }
    let Some(call) = value.to_str().and_then(Call::from_variable) else {
        return;
    };
    // SAFETY: before `main` this process has one thread, unless an earlier constructor started another. Such a thread must
    // not read the environment, which C forbids as well.
    unsafe { env::remove_var(VARIABLE) };
    run_rest_of_list(argc, argv, envp);
    serve::serve(call);
    process::exit(0);
}

/// The environment variable that makes a process a node, which runs work for a process on another machine. It holds the
/// address of the backend: `scheme://…`.
pub(crate) const NODE: &str = "POOL_NODE";

/// How a process becomes a node of the backend whose addresses have this scheme.
#[derive(Debug)]
pub struct NodeKind {
    scheme: &'static str,
    run: fn(&str) -> i32,
}

impl NodeKind {
    /// `run` is called before `main`, with the address; the process exits with the code that `run` returns.
    pub const fn new(scheme: &'static str, run: fn(&str) -> i32) -> NodeKind {
        NodeKind { scheme, run }
    }
}

inventory::collect!(NodeKind);

fn enter_as_node() {
    let address = env::var(NODE).unwrap_or_default();
    // SAFETY: as in `enter`. Workers, and processes that tasks start, must not become nodes.
    unsafe { env::remove_var(NODE) };
    serve::prepare_for_node();
    let scheme = address.split_once("://").map_or("", |(scheme, _)| scheme);
    let kind = inventory::iter::<NodeKind>
        .into_iter()
        .find(|kind| kind.scheme == scheme);
    let Some(kind) = kind else {
        let why = format!(
            "{NODE}={address}: this program has no backend for addresses that begin with `{scheme}://`\n"
        );
        let _ = io::stderr().write_all(why.as_bytes());
        process::exit(2);
    };
    process::exit((kind.run)(&address));
}

/// Whether this code is part of the program itself, and not of a library that the program loads later, as Python loads its
/// modules. Such a program, started as a worker, would first do what its command line says.
pub(crate) fn is_in_program() -> bool {
    // SAFETY: reads one value from the auxiliary vector: where the program begins.
    let program = unsafe { libc::getauxval(libc::AT_ENTRY) };
    object_of((&raw const ENTRY).addr()) == object_of(program as usize)
}

/// The start of the program or library that contains this address, if the dynamic linker knows it.
fn object_of(address: usize) -> Option<usize> {
    let mut found = MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: looks up any address, and writes what it finds.
    let known = unsafe { libc::dladdr(address as *const libc::c_void, found.as_mut_ptr()) };
    // SAFETY: all zero is valid, and so is what was written.
    let found = unsafe { found.assume_init() };
    (known != 0).then_some(found.dli_fbase as usize)
}

/// Whether the program runs with more rights than its caller has.
pub(crate) fn secure() -> bool {
    // SAFETY: reads one value from the auxiliary vector; any key may be asked for.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// Calls the constructors between ours and the end of the list.
fn run_rest_of_list(argc: c_int, argv: *const *const c_char, envp: *const *const c_char) {
    let end = end_of_list();
    let mut next = (&raw const ENTRY).cast::<Option<Init>>().wrapping_add(1);
    while next < end {
        // SAFETY: `next` lies between our own entry and the end of the list that it is part of, and
        // the list consists of function pointers of this type, or nulls.
        if let Some(init) = unsafe { next.read() } {
            init(argc, argv, envp);
        }
        next = next.wrapping_add(1);
    }
}

/// The end of the list; null if the linker does not define its symbol. In a program it always does, but in a shared library
/// bfd and gold don't, so the symbol must be weak. In stable Rust, only assembly can declare weak symbols.
fn end_of_list() -> *const Option<Init> {
    let end: *const Option<Init>;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: loads an address from the table where the linker has put it.
    unsafe {
        asm!(
            ".weak __init_array_end",
            ".hidden __init_array_end",
            "mov {}, qword ptr [rip + __init_array_end@GOTPCREL]",
            out(reg) end,
            options(nostack, readonly, preserves_flags),
        );
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        asm!(
            ".weak __init_array_end",
            ".hidden __init_array_end",
            "adrp {end}, :got:__init_array_end",
            "ldr {end}, [{end}, :got_lo12:__init_array_end]",
            end = out(reg) end,
            options(nostack, readonly, preserves_flags),
        );
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        unsafe extern "C" {
            static __init_array_end: [Option<Init>; 0];
        }
        end = (&raw const __init_array_end).cast();
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_survives_the_environment() {
        for role in [Role::Worker, Role::Contained, Role::Zygote] {
            let call = Call {
                parent: 12,
                index: 3,
                token: "ab".into(),
                role,
            };
            assert_eq!(Call::from_variable(&call.to_variable()), Some(call));
        }
        assert_eq!(Call::from_variable("12:x:ab"), None);
        assert_eq!(Call::from_variable("12:3:ab:caught"), None);
        assert_eq!(Call::from_variable(""), None);
    }
}

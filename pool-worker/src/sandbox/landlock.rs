//! Which paths a sandboxed worker may use, and which processes it may signal.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    RestrictSelf, RestrictSelfAttr, Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr,
    RulesetStatus, Scope, make_bitflags,
};
use rustix::fs::{FileType, fstat};

use super::{Part, Sandbox, not_entered};

/// Everything that is known of Landlock; what the kernel does not know is left out.
const KNOWN: ABI = ABI::V10;

/// The C library reads these to look up the names of hosts.
const RESOLVER: [&str; 6] = [
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/nsswitch.conf",
    "/etc/host.conf",
    "/etc/gai.conf",
    "/etc/services",
];

fn supports(ask: impl FnOnce(Ruleset) -> Result<Ruleset, landlock::RulesetError>) -> bool {
    ask(Ruleset::default().set_compatibility(CompatLevel::HardRequirement)).is_ok()
}

pub(super) fn has_paths() -> bool {
    supports(|ruleset| ruleset.handle_access(AccessFs::from_all(ABI::V1)))
}

pub(super) fn has_truncate() -> bool {
    supports(|ruleset| ruleset.handle_access(AccessFs::Truncate))
}

pub(super) fn has_signals() -> bool {
    supports(|ruleset| ruleset.scope(Scope::Signal))
}

/// Whether the threads that exist can be restricted, too.
pub(super) fn has_all_threads() -> bool {
    let ask = RestrictSelf::default().set_compatibility(CompatLevel::HardRequirement);
    ask.all_threads(true).is_ok()
}

/// Checks that a path can be opened.
pub(super) fn check(path: &OsStr) -> io::Result<()> {
    open(path).map(drop)
}

fn open(path: &OsStr) -> io::Result<PathFd> {
    PathFd::new(path).map_err(|error| match &error {
        landlock::PathFdError::OpenCall { source, .. } => not_permitted(path, source),
        _ => not_permitted(path, &error),
    })
}

fn not_permitted(path: &OsStr, why: &dyn fmt::Display) -> io::Error {
    let path = Path::new(path).display();
    io::Error::other(format!("the sandbox can't allow `{path}`: {why}"))
}

/// Restricts this process as far as Landlock can. `missing`: what is known to be impossible.
pub(super) fn restrict(sandbox: &Sandbox, missing: &[Part]) -> io::Result<()> {
    let (read, write) = (readable(sandbox), writable());
    let made = (|| {
        let mut ruleset = Ruleset::default()
            .handle_access(AccessFs::from_all(KNOWN))?
            .scope(Scope::from_all(KNOWN))?;
        if !sandbox.network {
            ruleset = ruleset.handle_access(AccessNet::from_all(KNOWN))?;
        }
        ruleset.create()
    })();
    let mut ruleset = made.map_err(not_entered)?;
    for path in &sandbox.read {
        ruleset = permit(ruleset, path, read)?;
    }
    for path in &sandbox.write {
        ruleset = permit(ruleset, path, write)?;
    }
    if sandbox.opens() {
        // It is the standard input of commands, for instance.
        let all = AccessFs::ReadFile | AccessFs::WriteFile;
        ruleset = permit(ruleset, OsStr::new("/dev/null"), all)?;
    }
    if sandbox.network {
        let files = RESOLVER.into_iter().filter(|path| Path::new(path).exists());
        for path in files {
            ruleset = permit(ruleset, &OsString::from(path), AccessFs::ReadFile.into())?;
        }
    }
    let status = ruleset
        .all_threads(true)
        .and_then(RulesetCreated::restrict_self);
    let status = status.map_err(not_entered)?;
    if sandbox.needs_rules(missing) && status.ruleset == RulesetStatus::NotEnforced {
        return Err(not_entered("the kernel enforces no rules"));
    }
    Ok(())
}

fn readable(sandbox: &Sandbox) -> BitFlags<AccessFs> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    if sandbox.processes {
        read | AccessFs::Execute
    } else {
        read
    }
}

/// Not symbolic links, named pipes, sockets and devices: whoever opens these later, outside of the sandbox, might be misled.
fn writable() -> BitFlags<AccessFs> {
    make_bitflags!(AccessFs::{
        WriteFile | Truncate | MakeReg | MakeDir | RemoveFile | RemoveDir | Refer
    })
}

fn permit(
    ruleset: RulesetCreated,
    path: &OsStr,
    access: BitFlags<AccessFs>,
) -> io::Result<RulesetCreated> {
    let opened = open(path)?;
    let is_directory = FileType::from_raw_mode(fstat(&opened)?.st_mode) == FileType::Directory;
    let access = match is_directory {
        true => access,
        false => access & AccessFs::from_file(KNOWN),
    };
    let permitted = ruleset.add_rule(PathBeneath::new(opened, access));
    permitted.map_err(|error| not_permitted(path, &error))
}

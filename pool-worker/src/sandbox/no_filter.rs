//! In place of `filter` where `seccompiler` has no filters for the processor.

use std::io;

use super::Sandbox;

pub(crate) fn name_of(_: u32) -> Option<&'static str> {
    None
}

pub(super) fn is_supported() -> bool {
    false
}

pub(super) fn install(_: &Sandbox, _: bool) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

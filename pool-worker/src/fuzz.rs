//! What a process believes of another, against anything that the other may say.
//!
//! Each function here runs one input; the inputs come from libFuzzer (`fuzz/`), and a test runs those that it has kept.
//! None may panic, whatever the input. What it may cost in time and memory is checked in `fuzz/src/lib.rs`.

mod frames;
mod replies;
mod values;

use crate::entry::Call;

pub use frames::frames;
pub use replies::{racing, replies};
pub use values::values;

/// What a worker is told by its environment.
pub fn calls(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    if let Some(call) = Call::from_variable(text) {
        assert_eq!(Call::from_variable(&call.to_variable()), Some(call));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::panic;
    use std::path::Path;

    /// Runs what the corpus has for a target. (A packaged crate, which Cargo has given that other manifest, comes
    /// without.)
    fn digest(target: &str, run: fn(&[u8])) {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        if here.join("Cargo.toml.orig").exists() {
            return;
        }
        let corpus = here.join("../fuzz/corpus").join(target);
        let files = fs::read_dir(&corpus).expect("there is a corpus");
        let mut count = 0;
        for file in files {
            let path = file.expect("it can be listed").path();
            let input = fs::read(&path).expect("it can be read");
            let outcome = panic::catch_unwind(|| run(&input));
            assert!(outcome.is_ok(), "{}", path.display());
            count += 1;
        }
        assert!(count > 0, "nothing in {}", corpus.display());
    }

    macro_rules! targets {
        ($($target:ident)*) => {$(
            #[test]
            fn $target() {
                digest(stringify!($target), super::$target);
            }
        )*};
    }

    targets! { replies racing frames values calls }
}

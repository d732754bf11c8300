//! Whether a task that is run only for its effect, such as an initializer, returned an error.
//!
//! Only code that knows the concrete type can find out, so the function emitted by `#[pool_task]` calls
//! `(&&&&Outcome(&result)).error()`. To select an impl of [`Tell`], the compiler removes one reference after another
//! and takes the first impl whose bounds are met. This works through aliases and associated types, too.

use std::fmt::{Debug, Display};

/// The result of a task.
#[derive(Debug)]
pub struct Outcome<'r, R>(pub &'r R);

/// Says whether a result is an error.
pub trait Tell {
    /// The text of the error, if it is one.
    fn error(&self) -> Option<String>;
}

impl<T, E: Display> Tell for &&&Outcome<'_, Result<T, E>> {
    fn error(&self) -> Option<String> {
        self.0.as_ref().err().map(ToString::to_string)
    }
}

impl<T, E: Debug> Tell for &&Outcome<'_, Result<T, E>> {
    fn error(&self) -> Option<String> {
        self.0.as_ref().err().map(|error| format!("{error:?}"))
    }
}

impl<T, E> Tell for &Outcome<'_, Result<T, E>> {
    fn error(&self) -> Option<String> {
        let unknown = || "it returned an error that can't be shown".to_owned();
        self.0.is_err().then(unknown)
    }
}

impl<R> Tell for Outcome<'_, R> {
    fn error(&self) -> Option<String> {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::fmt;

    use super::*;

    /// The expression that `#[pool_task]` emits.
    macro_rules! error_of {
        ($result:expr) => {
            (&&&&Outcome(&$result)).error()
        };
    }

    #[derive(Debug)]
    struct Shown;

    impl Display for Shown {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("shown")
        }
    }

    #[derive(Debug)]
    struct Dumped;

    struct Mute;

    type Alias = Result<u32, Shown>;

    #[test]
    fn an_error_is_shown_as_well_as_possible() {
        let shown: Alias = Err(Shown);
        assert_eq!(error_of!(shown).as_deref(), Some("shown"));
        let dumped: Result<(), Dumped> = Err(Dumped);
        assert_eq!(error_of!(dumped).as_deref(), Some("Dumped"));
        let mute: Result<Mute, Mute> = Err(Mute);
        let error = error_of!(mute);
        assert_eq!(
            error.as_deref(),
            Some("it returned an error that can't be shown")
        );
    }

    #[test]
    fn other_results_are_no_errors() {
        let fine: Alias = Ok(1);
        assert_eq!(error_of!(fine), None);
        assert_eq!(error_of!(Some(Mute)), None);
        assert_eq!(error_of!(Mute), None);
        assert_eq!(error_of!(()), None);
    }
}

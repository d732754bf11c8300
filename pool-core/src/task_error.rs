//! [`TaskError`]: an error that a task can return, made from any other error.

use std::any;
use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::iter;

use serde::{Deserialize, Serialize};

/// How many causes of an error are kept. Longer chains come from errors that are their own cause.
const CAUSES_MAX: usize = 64;

/// An ordinary error of a task that travels to the caller. The operator `?` makes one from any error.
///
/// The return value of a task must go through serde, which most error types can't. A `TaskError` keeps the messages of an error and
/// of its causes, so it can:
///
/// ```
/// use std::fs;
/// use std::path::Path;
///
/// use pool_core::{Pool, TaskError, pool_task};
///
/// /// The sum of the numbers in a file.
/// #[pool_task]
/// fn sum(file: &Path) -> Result<u64, TaskError> {
///     let mut total = 0;
///     for line in fs::read_to_string(file)?.lines() {     // an `io::Error`
///         total += line.parse::<u64>()?;                    // a `ParseIntError`
///     }
///     if total == 0 {
///         return Err("there is nothing to add up".into());
///     }
///     Ok(total)
/// }
///
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let pool = Pool::with_processes(1)?;
///     // The outer error is the pool's, the inner one is the task's.
///     let result: Result<u64, TaskError> = pool.apply(sum, ("/no/such/file".into(),))?;
///     let error = result.unwrap_err();
///     assert_eq!(error.message(), "No such file or directory (os error 2)");
///     assert_eq!(error.type_name(), "std::io::error::Error");
/// # std::fs::write(std::env::temp_dir().join("task-error-doc"), "1\n2")?;
/// # let file = std::env::temp_dir().join("task-error-doc");
///
///     // To the caller's caller go both.
///     let three = pool.apply(sum, (file.clone(),))??;
///     assert_eq!(three, 3);
/// # std::fs::remove_file(file)?;
///     Ok(())
/// }
/// ```
///
/// `??` works in a function that returns `Box<dyn Error>` or a `TaskError`; in one that returns an `anyhow::Error`, write
/// `pool.apply(…)?.map_err(anyhow::Error::msg)?`.
///
/// A `TaskError` can be made from everything that converts into a `Box<dyn Error + Send + Sync>`: errors, including the
/// [`Error`](crate::Error) of a pool that the task uses, `anyhow::Error`, `String`, `&str`; and with [`new`](TaskError::new) from
/// everything that implements `Display`.
///
/// `Display` shows the message followed by the causes: `can't read the table: No such file or directory (os error 2)`. A
/// cause is left out if the text before it already ends with it. `Debug` shows the same, because a `main` that returns
/// `Result<(), TaskError>` prints that.
///
/// Like `anyhow::Error`, it does not implement [`std::error::Error`]; otherwise it could not be made from every type that
/// does. [`into_boxed`](TaskError::into_boxed) returns an error that implements it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskError {
    message: String,
    causes: Vec<String>,
    type_name: Cow<'static, str>,
}

impl TaskError {
    /// Creates an error with this text and without a cause.
    pub fn new<M: fmt::Display>(message: M) -> TaskError {
        TaskError {
            message: message.to_string(),
            causes: Vec::new(),
            type_name: any::type_name::<M>().into(),
        }
    }

    /// The message of the error itself, without its causes.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The messages of its causes ([`source`](Error::source)), the nearest first; at most 64.
    pub fn causes(&self) -> impl Iterator<Item = &str> {
        self.causes.iter().map(String::as_str)
    }

    /// The name of the type that it was made from, as [`std::any::type_name`] gives it. Use it for messages only.
    pub fn type_name(&self) -> &str {
        &self.type_name
    }

    /// Converts it into a type that implements [`std::error::Error`], with its causes as [`source`](Error::source).
    pub fn into_boxed(self) -> Box<dyn Error + Send + Sync> {
        let causes = self.causes.into_iter().take(CAUSES_MAX);
        let source = causes
            .rev()
            .fold(None, |source, text| Some(Box::new(Link { text, source })));
        Box::new(Link {
            text: self.message,
            source,
        })
    }

    /// The message and the causes, one behind the other.
    fn texts(&self) -> impl Iterator<Item = &str> {
        iter::once(self.message()).chain(self.causes())
    }
}

impl<E: Into<Box<dyn Error + Send + Sync>>> From<E> for TaskError {
    fn from(error: E) -> TaskError {
        let error = error.into();
        let causes = iter::successors(error.source(), |&cause| cause.source());
        TaskError {
            message: error.to_string(),
            causes: causes.take(CAUSES_MAX).map(ToString::to_string).collect(),
            type_name: any::type_name::<E>().into(),
        }
    }
}

/// (`?` can't make a box that is `Send + Sync`: use [`into_boxed`](TaskError::into_boxed).)
impl From<TaskError> for Box<dyn Error> {
    fn from(error: TaskError) -> Box<dyn Error> {
        error.into_boxed()
    }
}

impl fmt::Display for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        for (before, cause) in self.texts().zip(self.causes()) {
            if !before.ends_with(cause) {
                write!(f, ": {cause}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One error of a chain.
struct Link {
    text: String,
    source: Option<Box<Link>>,
}

impl Error for Link {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Includes the causes, because a `main` that returns this error prints them.
impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        match &self.source {
            Some(source) if !self.text.ends_with(&source.text) => write!(f, ": {source:?}"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Layer(&'static str, Option<Box<Layer>>);

    impl fmt::Display for Layer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Layer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|source| source as _)
        }
    }

    fn layers(texts: &[&'static str]) -> Layer {
        match texts {
            [text] => Layer(text, None),
            [text, rest @ ..] => Layer(text, Some(Box::new(layers(rest)))),
            [] => unreachable!("there is a text"),
        }
    }

    #[test]
    fn causes_are_told_once() {
        let text = |texts| TaskError::from(layers(texts)).to_string();
        assert_eq!(text(&["a"]), "a");
        assert_eq!(text(&["a", "b", "c"]), "a: b: c");
        assert_eq!(text(&["a: b: c", "b: c", "c"]), "a: b: c");
        assert_eq!(text(&["a: b", "b", "c"]), "a: b: c");
        assert_eq!(text(&["a", "", "c"]), "a: c");
    }

    #[test]
    fn it_is_made_of_anything() {
        let number = "x".parse::<u8>().unwrap_err();
        assert_eq!(
            TaskError::from(number).type_name(),
            "core::num::error::ParseIntError"
        );
        assert_eq!(TaskError::from("text").message(), "text");
        assert_eq!(
            TaskError::from("text".to_owned()).type_name(),
            "alloc::string::String"
        );
        assert_eq!(
            TaskError::from(crate::Error::Closed).message(),
            crate::Error::Closed.to_string()
        );
        let boxed: Box<dyn Error + Send + Sync> = layers(&["a", "b"]).into();
        assert_eq!(TaskError::from(boxed).to_string(), "a: b");
        let new = TaskError::new(format_args!("{} of {}", 1, 2));
        assert_eq!((new.message(), new.causes().count()), ("1 of 2", 0));
    }

    #[test]
    fn debug_is_what_display_is() {
        let error = TaskError::from(layers(&["a", "b"]));
        assert_eq!(format!("{error:?}"), "a: b");
    }

    #[test]
    fn boxed_it_has_its_causes() {
        let boxed = TaskError::from(layers(&["a", "b", "c"])).into_boxed();
        let source = boxed.source().expect("b");
        assert_eq!(
            (boxed.to_string(), source.to_string()),
            ("a".into(), "b".into())
        );
        assert_eq!(source.source().expect("c").to_string(), "c");
        // And so there and back.
        assert_eq!(TaskError::from(boxed).to_string(), "a: b: c");
    }

    #[test]
    fn an_error_that_is_its_own_cause_ends() {
        #[derive(Debug)]
        struct Endless;
        impl fmt::Display for Endless {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("endless")
            }
        }
        impl Error for Endless {
            fn source(&self) -> Option<&(dyn Error + 'static)> {
                Some(&Endless)
            }
        }
        let error = TaskError::from(Endless);
        assert_eq!(
            (error.causes().count(), error.to_string()),
            (CAUSES_MAX, "endless".to_owned())
        );
    }
}

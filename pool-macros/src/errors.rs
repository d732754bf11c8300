//! The mistakes found so far, so that one compile reports all of them.

use proc_macro2::TokenStream;
use quote::ToTokens;
use syn::Error;

/// Mistakes in the order in which they were found.
#[derive(Default)]
pub(crate) struct Errors(Vec<Error>);

impl Errors {
    /// Adds a mistake, or several if they are combined in one error.
    pub(crate) fn push(&mut self, error: Error) {
        self.0.extend(error);
    }

    /// Adds a mistake that underlines `tokens`.
    pub(crate) fn at(&mut self, tokens: impl ToTokens, message: impl std::fmt::Display) {
        self.push(Error::new_spanned(tokens, message));
    }

    pub(crate) fn append(&mut self, mut later: Errors) {
        self.0.append(&mut later.0);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each mistake as an invocation of `compile_error!` with braces, which is valid as an item and
    /// as an expression.
    pub(crate) fn into_invocations(self) -> impl Iterator<Item = TokenStream> {
        self.0.into_iter().map(Error::into_compile_error)
    }
}

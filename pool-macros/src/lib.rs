//! The attribute `#[pool_task]`.
#![forbid(unsafe_code)]

use proc_macro::TokenStream;

/// Registers a function with the pool.
#[proc_macro_attribute]
pub fn pool_task(_args: TokenStream, item: TokenStream) -> TokenStream {
    item
}

//! Parses the function under the attribute.

use proc_macro2::TokenStream;
use syn::parse::{ParseStream, Parser};
use syn::{Attribute, Error, Item, Signature, Token, Visibility};

/// A function with a body.
pub(crate) struct Function {
    pub(crate) attrs: Vec<Attribute>,
    pub(crate) vis: Visibility,
    pub(crate) sig: Signature,
    /// Kept as tokens: the macro doesn't look into it, so it may use syntax that `syn` doesn't know.
    pub(crate) body: TokenStream,
}

/// Parses the item under the attribute.
///
/// ```text
/// function = { attribute } [ visibility ] signature "{" … "}"
/// ```
pub(crate) fn function(item: TokenStream) -> syn::Result<Function> {
    let parser = |input: ParseStream<'_>| {
        let attrs = input.call(Attribute::parse_outer)?;
        let vis = input.parse()?;
        let sig: Signature = input.parse()?;
        if input.is_empty() || input.peek(Token![;]) {
            return Err(Error::new(
                sig.ident.span(),
                format_args!(
                    "`{}` has no body, but a pool task must be a function that a worker can run",
                    sig.ident
                ),
            ));
        }
        let body = input.parse()?;
        Ok(Function {
            attrs,
            vis,
            sig,
            body,
        })
    };
    parser
        .parse2(item.clone())
        .map_err(|error| match syn::parse2::<Item>(item) {
            Ok(other) => not_a_function(&other).unwrap_or(error),
            Err(_) => error,
        })
}

/// The error that says what the item is instead of a function, if it certainly is none.
fn not_a_function(item: &Item) -> Option<Error> {
    use quote::ToTokens;

    let (token, kind) = match item {
        Item::Const(item) => (item.const_token.to_token_stream(), "a constant"),
        Item::Enum(item) => (item.enum_token.to_token_stream(), "an enum"),
        Item::Impl(item) => (
            item.impl_token.to_token_stream(),
            "an `impl` block (methods cannot be tasks either)",
        ),
        Item::Mod(item) => (item.mod_token.to_token_stream(), "a module"),
        Item::Static(item) => (item.static_token.to_token_stream(), "a static"),
        Item::Struct(item) => (item.struct_token.to_token_stream(), "a struct"),
        Item::Trait(item) => (item.trait_token.to_token_stream(), "a trait"),
        Item::Type(item) => (item.type_token.to_token_stream(), "a type alias"),
        Item::Use(item) => (item.use_token.to_token_stream(), "a `use` declaration"),
        Item::Union(item) => (item.union_token.to_token_stream(), "a union"),
        Item::ExternCrate(_) | Item::ForeignMod(_) | Item::Macro(_) | Item::TraitAlias(_) => {
            (item.to_token_stream(), "something else")
        }
        // An item that `syn` can't parse may still be a function, of a kind that has its own message.
        _ => return None,
    };
    Some(Error::new_spanned(
        token,
        format_args!("`#[pool_task]` needs a free function, but this is {kind}"),
    ))
}

//! Where each attribute of the function goes.

use proc_macro2::{Ident, TokenStream, TokenTree};
use syn::parse::Parser;
use syn::punctuated::Punctuated;
use syn::{Attribute, Meta, Token, parse_quote};

use crate::parse::Function;

/// The attributes of a function, grouped by the item that they go to.
#[derive(Default)]
pub(crate) struct Sorted {
    /// `#[cfg]`: on every item.
    pub(crate) cfg: Vec<Attribute>,
    /// On the struct, which callers use and the documentation shows.
    pub(crate) on_struct: Vec<Attribute>,
    /// On the function with the user's body.
    pub(crate) on_function: Vec<Attribute>,
    /// On the block that holds everything else: lint levels, since the user's types are repeated there.
    pub(crate) on_block: Vec<Attribute>,
}

/// Sorts the attributes. `handle` means that the function stays where it is.
pub(crate) fn sort(function: &Function, handle: bool) -> Sorted {
    let mut sorted = Sorted::default();
    for attr in &function.attrs {
        for (attr, meta) in split(attr) {
            sorted.place(attr, &meta, handle);
        }
    }
    sorted
}

impl Sorted {
    fn place(&mut self, attr: Attribute, meta: &Meta, handle: bool) {
        let name = meta.path().get_ident().map(ToString::to_string);
        match name.as_deref().unwrap_or_default() {
            "cfg" => self.cfg.push(attr),
            "doc" if handle => self.on_function.push(attr),
            "doc" => self.on_struct.push(attr),
            // Uses elsewhere should warn, but the emitted code should not.
            "deprecated" => {
                self.on_block.push(parse_quote!(#[allow(deprecated)]));
                self.on_struct.push(attr.clone());
                if handle {
                    self.on_function.push(attr);
                }
            }
            "must_use" => self.on_function.push(attr),
            "allow" | "warn" | "deny" | "forbid" => {
                self.on_struct.push(attr.clone());
                self.on_block.push(attr.clone());
                self.on_function.push(attr);
            }
            // The function is inside the block, so only the struct can lack documentation.
            "expect" if !handle && lists(meta, "missing_docs") => self.on_struct.push(attr),
            "expect" => {
                self.on_block.extend(as_allow(&attr));
                self.on_function.push(attr);
            }
            _ => self.on_function.push(attr),
        }
    }
}

/// Splits `#[cfg_attr(when, a, b)]` into `#[cfg_attr(when, a)]` and `#[cfg_attr(when, b)]`,
/// each with the attribute that it adds.
fn split(attr: &Attribute) -> Vec<(Attribute, Meta)> {
    let whole = || vec![(attr.clone(), attr.meta.clone())];
    if !attr.path().is_ident("cfg_attr") {
        return whole();
    }
    let Ok(list) = attr.meta.require_list() else {
        return whole();
    };
    let parser = Punctuated::<Meta, Token![,]>::parse_terminated;
    let Ok(metas) = parser.parse2(list.tokens.clone()) else {
        return whole();
    };
    let mut metas = metas.into_iter();
    let Some(when) = metas.next() else {
        return whole();
    };
    metas
        .map(|meta| (parse_quote!(#[cfg_attr(#when, #meta)]), meta))
        .collect()
}

/// Whether `expect(…)` lists this lint.
fn lists(meta: &Meta, lint: &str) -> bool {
    let parser = Punctuated::<Meta, Token![,]>::parse_terminated;
    let lints = meta
        .require_list()
        .and_then(|list| parser.parse2(list.tokens.clone()));
    lints.is_ok_and(|lints| lints.iter().any(|meta| meta.path().is_ident(lint)))
}

/// Turns `#[expect(…)]` into `#[allow(…)]`: outside the function, the lint may not fire.
fn as_allow(attr: &Attribute) -> Option<Attribute> {
    let tokens = &attr.meta.require_list().ok()?.tokens;
    if attr.path().is_ident("expect") {
        return Some(parse_quote!(#[allow(#tokens)]));
    }
    let tokens = tokens.clone().into_iter().map(|token| match token {
        TokenTree::Ident(ident) if ident == "expect" => {
            TokenTree::Ident(Ident::new("allow", ident.span()))
        }
        token => token,
    });
    let tokens: TokenStream = tokens.collect();
    Some(parse_quote!(#[cfg_attr(#tokens)]))
}

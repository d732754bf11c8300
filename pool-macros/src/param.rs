//! How one parameter travels: what the caller gives, and what the function is called with.

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{GenericArgument, Ident, Path, PathArguments, Type, TypeReference};

use crate::expand::at;

/// How the value of a parameter, or a result, is written and read.
pub(crate) enum Travel<'a> {
    /// `T`: by itself.
    Owned(&'a Type),
    /// `Vec<u8>`: as one block of bytes.
    Bytes(&'a Type),
    /// `&T`: the caller gives a `T`.
    Ref(&'a Type),
    /// `&Vec<u8>`: the caller gives the vector, and it goes as one block of bytes.
    BytesRef(&'a Type),
    /// `&str`: the caller gives a `String`, and the worker reads it in place.
    Str(&'a Type),
    /// `&[u8]`: the caller gives a `Vec<u8>`, and the worker reads it in place.
    ByteSlice(&'a Type),
    /// `&[T]`: the caller gives a `Vec<T>`.
    Slice(&'a Type),
    /// `&Path`, `&OsStr`, `&CStr`: the caller gives what `ToOwned` makes of it. Going through the
    /// trait keeps a user's own type of that name working.
    Unsized(&'a Type),
}

impl<'a> Travel<'a> {
    /// Looks at a type as it is written, since a macro sees no more than that.
    pub(crate) fn of(ty: &'a Type) -> Self {
        match peel(ty) {
            Type::Reference(TypeReference { elem, .. }) => match peel(elem) {
                Type::Slice(slice) if is_primitive(peel(&slice.elem), "u8") => {
                    Travel::ByteSlice(elem)
                }
                Type::Slice(slice) => Travel::Slice(&slice.elem),
                target if is_primitive(target, "str") => Travel::Str(elem),
                target if is_byte_vec(target) => Travel::BytesRef(elem),
                target if is_unsized(target) => Travel::Unsized(elem),
                _ => Travel::Ref(elem),
            },
            target if is_byte_vec(target) => Travel::Bytes(ty),
            _ => Travel::Owned(ty),
        }
    }

    /// Where a missing trait is to be underlined: at the user's type, but with the macro's names.
    pub(crate) fn span(&self) -> Span {
        let (Travel::Owned(ty)
        | Travel::Bytes(ty)
        | Travel::Ref(ty)
        | Travel::BytesRef(ty)
        | Travel::Str(ty)
        | Travel::ByteSlice(ty)
        | Travel::Slice(ty)
        | Travel::Unsized(ty)) = self;
        at(ty.span())
    }

    /// The type that the caller gives.
    pub(crate) fn owned(&self) -> TokenStream {
        let span = self.span();
        match self {
            Travel::Owned(ty) | Travel::Bytes(ty) | Travel::Ref(ty) | Travel::BytesRef(ty) => {
                ty.to_token_stream()
            }
            Travel::Str(_) => quote_spanned!(span=> ::std::string::String),
            Travel::ByteSlice(_) => {
                quote_spanned!(span=> ::std::vec::Vec<::core::primitive::u8>)
            }
            Travel::Slice(elem) => quote_spanned!(span=> ::std::vec::Vec<#elem>),
            Travel::Unsized(ty) => quote_spanned!(span=> <#ty as ::std::borrow::ToOwned>::Owned),
        }
    }

    /// The function of `__private` that writes the value.
    pub(crate) fn encoder(&self) -> TokenStream {
        let span = self.span();
        match self {
            Travel::Bytes(_) | Travel::BytesRef(_) | Travel::ByteSlice(_) => {
                quote_spanned!(span=> encode_bytes)
            }
            Travel::Str(_) => quote_spanned!(span=> encode),
            Travel::Slice(elem) => quote_spanned!(span=> encode::<[#elem]>),
            Travel::Owned(ty) | Travel::Ref(ty) | Travel::Unsized(ty) => {
                quote_spanned!(span=> encode::<#ty>)
            }
        }
    }

    /// The call that takes the value off `reader`, a `Result`.
    pub(crate) fn take(&self, reader: &Ident) -> TokenStream {
        let span = self.span();
        match self {
            Travel::Str(ty) => quote_spanned!(span=> #reader.take::<&#ty>()),
            Travel::ByteSlice(_) => quote_spanned!(span=> #reader.take_bytes()),
            Travel::Bytes(_) | Travel::BytesRef(_) => {
                quote_spanned!(span=> #reader.take_bytes().map(<[::core::primitive::u8]>::to_vec))
            }
            _ => {
                let owned = self.owned();
                quote_spanned!(span=> #reader.take_owned::<#owned>())
            }
        }
    }

    /// Whether it is a byte string, which needs no length where nothing comes behind it.
    pub(crate) fn is_bytes(&self) -> bool {
        matches!(
            self,
            Travel::Bytes(_) | Travel::BytesRef(_) | Travel::ByteSlice(_)
        )
    }

    /// The call that takes a byte string behind which nothing comes off `reader`.
    pub(crate) fn take_last(&self, reader: &Ident) -> TokenStream {
        let span = self.span();
        match self {
            Travel::ByteSlice(_) => quote_spanned!(span=> #reader.take_last_bytes()),
            _ => quote_spanned!(span=> #reader.take_last_bytes().to_vec()),
        }
    }

    /// What the function is called with, given the local variable that holds the value.
    pub(crate) fn pass(&self, local: &Ident) -> TokenStream {
        let span = self.span();
        match self {
            Travel::Owned(_) | Travel::Bytes(_) | Travel::Str(_) | Travel::ByteSlice(_) => {
                quote!(#local)
            }
            Travel::Ref(_) | Travel::BytesRef(_) | Travel::Slice(_) => {
                quote_spanned!(span=> &#local)
            }
            Travel::Unsized(ty) => {
                quote_spanned!(span=> ::core::borrow::Borrow::<#ty>::borrow(&#local))
            }
        }
    }
}

/// Takes off parentheses, and the invisible ones around what a `macro_rules!` variable held.
pub(crate) fn peel(mut ty: &Type) -> &Type {
    loop {
        match ty {
            Type::Group(group) => ty = &group.elem,
            Type::Paren(paren) => ty = &paren.elem,
            _ => return ty,
        }
    }
}

fn plain_path(ty: &Type) -> Option<&Path> {
    match ty {
        Type::Path(path) if path.qself.is_none() => Some(&path.path),
        _ => None,
    }
}

/// `str`, or the same by the path `core::primitive::str`.
fn is_primitive(ty: &Type, name: &str) -> bool {
    plain_path(ty).is_some_and(|path| {
        let mut names = path.segments.iter().rev().map(|segment| &segment.ident);
        names.next().is_some_and(|last| last == name)
            && names.next().is_none_or(|module| module == "primitive")
    })
}

/// `Path`, `OsStr` or `CStr`, by whatever path.
fn is_unsized(ty: &Type) -> bool {
    plain_path(ty)
        .and_then(|path| path.segments.last())
        .is_some_and(|last| {
            last.arguments.is_none()
                && ["Path", "OsStr", "CStr"]
                    .iter()
                    .any(|name| last.ident == name)
        })
}

/// `Vec<u8>`, or the same by its full path. Another path, `arena::Vec<u8>`, is another type.
fn is_byte_vec(ty: &Type) -> bool {
    let Some(path) = plain_path(ty) else {
        return false;
    };
    let mut names = path.segments.iter().map(|segment| &segment.ident);
    let standard = match path.segments.len() {
        1 => names.all(|name| name == "Vec"),
        3 => {
            names
                .next()
                .is_some_and(|name| name == "std" || name == "alloc")
                && names.next().is_some_and(|name| name == "vec")
                && names.next().is_some_and(|name| name == "Vec")
        }
        _ => false,
    };
    let arguments = path.segments.last().map(|segment| &segment.arguments);
    let Some(PathArguments::AngleBracketed(arguments)) = arguments else {
        return false;
    };
    let mut arguments = arguments.args.iter();
    let first = arguments.next();
    standard
        && arguments.next().is_none()
        && matches!(first, Some(GenericArgument::Type(ty)) if is_primitive(peel(ty), "u8"))
}

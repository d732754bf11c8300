//! How one parameter is sent: what the caller passes, and what the function is called with.

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{GenericArgument, Ident, Path, PathArguments, Type, TypeReference};

use crate::expand::at;

/// How the value of a parameter, or a result, is encoded and decoded.
pub(crate) struct Travel<'a> {
    /// The type as written, but without the `&`.
    ty: &'a Type,
    /// The function takes a reference.
    by_ref: bool,
    kind: Kind<'a>,
    format: Format,
}

/// The format of values that are neither blocks nor text.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Format {
    /// Compact; can be read only with the type at hand.
    #[default]
    Postcard,
    /// Self-describing.
    MsgPack,
}

enum Kind<'a> {
    /// `T` or `&T`.
    Plain,
    /// `&str`: the caller passes a `String`, and the worker reads it in place.
    Str,
    /// `String`.
    String,
    /// `&[T]`: the caller passes a `Vec<T>`.
    Slice(&'a Type),
    /// `Vec<T>`.
    Vec(&'a Type),
    /// Numbers that are sent as one block.
    Block(&'a Type, Form),
    /// `&Path`, `&OsStr`, `&CStr`: the caller passes the type that `ToOwned` gives. Using the trait
    /// means that a user's own type of that name works, too.
    Unsized,
}

/// The container of a block.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// `&[P]`: the caller passes a `Vec<P>`, and the worker reads it in place.
    Slice,
    /// `Vec<P>`.
    Vec,
    /// `Box<[P]>`.
    Boxed,
    /// `[P; N]`.
    Array,
}

/// The number types that are sent as blocks.
const PRIMITIVES: [&str; 14] = [
    "u8", "u16", "u32", "u64", "u128", "usize", "i8", "i16", "i32", "i64", "i128", "isize", "f32",
    "f64",
];

impl<'a> Travel<'a> {
    /// Decides by how a type is spelled, since a macro sees nothing else.
    pub(crate) fn of(ty: &'a Type, format: Format) -> Self {
        let (ty, by_ref) = match peel(ty) {
            Type::Reference(TypeReference { elem, .. }) => (&**elem, true),
            _ => (ty, false),
        };
        let kind = match peel(ty) {
            Type::Slice(slice) if by_ref && is_number(&slice.elem) => {
                Kind::Block(&slice.elem, Form::Slice)
            }
            Type::Slice(slice) if by_ref => Kind::Slice(&slice.elem),
            Type::Array(array) if is_number(&array.elem) => Kind::Block(&array.elem, Form::Array),
            target if by_ref && is_primitive(target, "str") => Kind::Str,
            target if by_ref && is_unsized(target) => Kind::Unsized,
            target if is_string(target) => Kind::String,
            target => match argument_of(target, &["std", "alloc"], "vec", "Vec") {
                Some(elem) if is_number(elem) => Kind::Block(elem, Form::Vec),
                Some(elem) => Kind::Vec(elem),
                None => match argument_of(target, &["std", "alloc"], "boxed", "Box").map(peel) {
                    Some(Type::Slice(slice)) if is_number(&slice.elem) => {
                        Kind::Block(&slice.elem, Form::Boxed)
                    }
                    _ => Kind::Plain,
                },
            },
        };
        // Text is the same in both formats.
        let format = match kind {
            Kind::Str | Kind::Unsized | Kind::String => Format::Postcard,
            _ => format,
        };
        Travel {
            ty,
            by_ref,
            kind,
            format,
        }
    }

    /// Where errors about a missing trait should point: at the user's type. Names resolve as in the macro.
    pub(crate) fn span(&self) -> Span {
        match self.kind {
            Kind::Slice(elem) => at(elem.span()),
            _ => at(self.ty.span()),
        }
    }

    /// The type that the caller passes.
    pub(crate) fn owned(&self) -> TokenStream {
        let (span, ty) = (self.span(), self.ty);
        match self.kind {
            Kind::Str => quote_spanned!(span=> ::std::string::String),
            Kind::Slice(elem) | Kind::Block(elem, Form::Slice) => {
                quote_spanned!(span=> ::std::vec::Vec<#elem>)
            }
            Kind::Unsized => quote_spanned!(span=> <#ty as ::std::borrow::ToOwned>::Owned),
            _ => ty.to_token_stream(),
        }
    }

    /// The marker type that tells `by_ref` and `partial` how the parameter is sent.
    pub(crate) fn marker(&self, private: &TokenStream) -> TokenStream {
        let (span, ty) = (self.span(), self.ty);
        let owned = self.owned();
        match self.kind {
            Kind::Plain if self.is_described() => quote_spanned!(span=> #private::Described<#ty>),
            Kind::Plain => quote_spanned!(span=> #private::Plain<#ty>),
            Kind::Str | Kind::String => {
                quote_spanned!(span=> #private::Unsized<::core::primitive::str>)
            }
            Kind::Unsized => quote_spanned!(span=> #private::Unsized<#ty>),
            Kind::Slice(elem) | Kind::Vec(elem) if self.is_described() => {
                quote_spanned!(span=> #private::DescribedSlice<#elem>)
            }
            Kind::Slice(elem) | Kind::Vec(elem) => quote_spanned!(span=> #private::Slice<#elem>),
            Kind::Block(_, Form::Array) => quote_spanned!(span=> #private::Array<#ty>),
            Kind::Block(elem, _) => quote_spanned!(span=> #private::Block<#owned, #elem>),
        }
    }

    fn is_described(&self) -> bool {
        self.format == Format::MsgPack
    }

    /// The names of the functions that encode, decode, take, and take for a reference.
    fn functions(&self) -> [Ident; 4] {
        let names = match self.format {
            Format::Postcard => ["encode", "decode", "take_owned", "take_kept"],
            Format::MsgPack => [
                "encode_msgpack",
                "decode_msgpack",
                "take_msgpack",
                "take_kept_msgpack",
            ],
        };
        names.map(|name| Ident::new(name, self.span()))
    }

    /// An expression that encodes `value` to the end of the output; its type is a `Result`.
    pub(crate) fn encode(&self, private: &TokenStream, value: &TokenStream) -> TokenStream {
        let (span, ty) = (self.span(), self.ty);
        let (out, start) = (quote!(__pool_task_out), quote!(__pool_task_start));
        let [encode, ..] = self.functions();
        match self.kind {
            Kind::Block(elem, _) => {
                quote_spanned!(span=> #private::encode_block::<#elem>(&#value, #out, #start))
            }
            Kind::Str => quote_spanned!(span=> #private::encode(&#value, #out)),
            Kind::Slice(elem) => quote_spanned!(span=> #private::#encode::<[#elem]>(&#value, #out)),
            _ => quote_spanned!(span=> #private::#encode::<#ty>(&#value, #out)),
        }
    }

    /// The same for a block that is the last parameter; its type is an `Option` of bytes to send after the others.
    pub(crate) fn give_last(&self, private: &TokenStream, value: &TokenStream) -> TokenStream {
        let span = self.span();
        let (out, start) = (quote!(__pool_task_out), quote!(__pool_task_start));
        match self.kind {
            Kind::Block(elem, Form::Array) => quote_spanned!(span=> {
                #private::encode_last_block::<#elem>(&#value, #out, #start);
                ::core::option::Option::None
            }),
            Kind::Block(elem, _) => {
                quote_spanned!(span=> #private::give_last_block::<#elem>(#value, #out, #start))
            }
            _ => quote!(::core::option::Option::None),
        }
    }

    /// An expression that encodes a whole result. Its type is a `Result` of an `Option`, which holds a long block that
    /// is to be sent from where it is.
    pub(crate) fn encode_output(&self, private: &TokenStream, value: &TokenStream) -> TokenStream {
        let (span, ty) = (self.span(), self.ty);
        let [encode, ..] = self.functions();
        match self.kind {
            Kind::Block(elem, Form::Array) => quote_spanned!(span=> {
                #private::encode_output_array::<#elem>(&#value, __pool_task_output);
                ::core::result::Result::Ok(::core::option::Option::None)
            }),
            Kind::Block(elem, _) => quote_spanned!(span=> {
                ::core::result::Result::Ok(
                    #private::encode_output_block::<#elem>(#value, __pool_task_output)
                )
            }),
            _ => {
                let encoded = if is_result(ty) {
                    let travels = self.travels(private);
                    quote_spanned!(span=>
                        #private::Travels::#encode(#travels, &#value, __pool_task_output)
                    )
                } else {
                    quote_spanned!(span=> #private::#encode::<#ty>(&#value, __pool_task_output))
                };
                quote_spanned!(span=>
                    #encoded
                        .map(|()| ::core::option::Option::None)
                        .map_err(#private::RunError::Encode)
                )
            }
        }
    }

    /// An expression for what encodes and decodes a type spelled `Result`. Both sides use the same expression, so that
    /// rustc reports an error type that can't be sent only once.
    fn travels(&self, private: &TokenStream) -> TokenStream {
        let (span, ty) = (self.span(), self.ty);
        quote_spanned!(span=> {
            #[allow(unused_imports, reason = "a `Result` has an inherent function of that name")]
            use #private::AnyReturned as _;
            #private::Returned::<#ty>::travels()
        })
    }

    /// An expression that decodes a whole result; its type is a `Result`.
    pub(crate) fn decode_output(&self, private: &TokenStream) -> TokenStream {
        let (span, ty) = (self.span(), self.ty);
        let [_, decode, ..] = self.functions();
        match self.kind {
            Kind::Block(elem, form) => {
                let block = quote_spanned!(span=> #private::decode_output_block::<#elem>(__pool_task_bytes));
                match form {
                    Form::Array => {
                        quote_spanned!(span=> #block.and_then(|block| #private::array(&block)))
                    }
                    Form::Boxed => {
                        quote_spanned!(span=> #block.map(::std::vec::Vec::into_boxed_slice))
                    }
                    Form::Vec | Form::Slice => block,
                }
            }
            _ if is_result(ty) => {
                let travels = self.travels(private);
                quote_spanned!(span=> #private::Travels::#decode(#travels, &__pool_task_bytes))
            }
            _ => quote_spanned!(span=> #private::#decode::<#ty>(&__pool_task_bytes)),
        }
    }

    /// Whether it is a block. The last parameter, if it is a block, needs no length.
    pub(crate) fn is_block(&self) -> bool {
        matches!(self.kind, Kind::Block(..))
    }

    /// If the only parameter is a block that the function takes as a vector: an expression that makes the whole input
    /// into that vector; its type is a `Result`.
    pub(crate) fn take_whole(&self, private: &TokenStream) -> Option<TokenStream> {
        let span = self.span();
        match self.kind {
            Kind::Block(elem, Form::Vec) => Some(quote_spanned!(span=>
                #private::Input::into_block::<#elem>(__pool_task_input)
            )),
            _ => None,
        }
    }

    /// An expression that takes the value off `reader`; its type is a `Result`. `last`: this is a block and the last
    /// parameter.
    pub(crate) fn take(&self, private: &TokenStream, reader: &Ident, last: bool) -> TokenStream {
        let (span, ty, owned) = (self.span(), self.ty, self.owned());
        let [_, _, take, take_kept] = self.functions();
        match self.kind {
            Kind::Str => quote_spanned!(span=> #reader.take::<&#ty>()),
            Kind::Block(elem, form) => {
                let block = if last {
                    quote_spanned!(span=> #reader.take_last_block::<#elem>())
                } else {
                    quote_spanned!(span=> #reader.take_block::<#elem>())
                };
                match form {
                    Form::Slice => block,
                    Form::Vec => {
                        quote_spanned!(span=> #block.map(::std::borrow::Cow::into_owned))
                    }
                    Form::Boxed => quote_spanned!(span=>
                        #block.map(|block| block.into_owned().into_boxed_slice())
                    ),
                    Form::Array => quote_spanned!(span=>
                        #block.and_then(|block| #private::array::<#elem, _>(&block))
                    ),
                }
            }
            _ if self.by_ref => quote_spanned!(span=> #reader.#take_kept::<#owned>()),
            _ => quote_spanned!(span=> #reader.#take::<#owned>()),
        }
    }

    /// The argument for the function's call, given the local variable that holds the value.
    pub(crate) fn pass(&self, local: &Ident) -> TokenStream {
        let (span, ty) = (self.span(), self.ty);
        match self.kind {
            Kind::Unsized => {
                quote_spanned!(span=> ::core::borrow::Borrow::<#ty>::borrow(&*#local))
            }
            Kind::Block(_, Form::Slice) => quote_spanned!(span=> &*#local),
            Kind::Block(..) if self.by_ref => quote_spanned!(span=> &#local),
            Kind::Str => quote!(#local),
            _ if self.by_ref => quote_spanned!(span=> &*#local),
            _ => quote!(#local),
        }
    }
}

/// Removes parentheses, and the invisible groups around the expansion of a `macro_rules!` variable.
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

/// Whether this is the primitive type `name`, alone or by its path `core::primitive::name`.
fn is_primitive(ty: &Type, name: &str) -> bool {
    plain_path(ty).is_some_and(|path| {
        let mut names = path.segments.iter().rev().map(|segment| &segment.ident);
        names.next().is_some_and(|last| last == name)
            && names.next().is_none_or(|module| module == "primitive")
    })
}

/// Whether this is `Path`, `OsStr` or `CStr`, by any path.
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

/// Whether this is called `Result`, by any path.
fn is_result(ty: &Type) -> bool {
    plain_path(peel(ty))
        .and_then(|path| path.segments.last())
        .is_some_and(|last| last.ident == "Result")
}

/// Whether this is a number type that is sent as a block.
fn is_number(ty: &Type) -> bool {
    let ty = peel(ty);
    PRIMITIVES.iter().any(|name| is_primitive(ty, name))
}

/// Whether this is `String`, alone or by its full path.
fn is_string(ty: &Type) -> bool {
    standard(ty, &["std", "alloc"], "string", "String").is_some_and(|arguments| arguments.is_none())
}

/// The `T` of `Vec<T>`, alone or by its full path. By another path, such as `arena::Vec<u8>`, it is another type.
fn argument_of<'a>(ty: &'a Type, crates: &[&str], module: &str, name: &str) -> Option<&'a Type> {
    let PathArguments::AngleBracketed(arguments) = standard(ty, crates, module, name)? else {
        return None;
    };
    let mut arguments = arguments.args.iter();
    match (arguments.next()?, arguments.next()) {
        (GenericArgument::Type(ty), None) => Some(ty),
        _ => None,
    }
}

/// The generic arguments of a type of the standard library, spelled by its name alone or by its full path.
fn standard<'a>(
    ty: &'a Type,
    crates: &[&str],
    module: &str,
    name: &str,
) -> Option<&'a PathArguments> {
    let path = plain_path(ty)?;
    let last = path.segments.last()?;
    let mut before = path.segments.iter().map(|segment| &segment.ident);
    let is_it = match path.segments.len() {
        1 => path.leading_colon.is_none(),
        3 => {
            before
                .next()
                .is_some_and(|found| crates.iter().any(|name| found == name))
                && before.next().is_some_and(|found| found == module)
        }
        _ => false,
    };
    (is_it && last.ident == name).then_some(&last.arguments)
}

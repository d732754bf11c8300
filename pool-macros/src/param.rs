//! How one parameter travels: what the caller gives, and what the function is called with.

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{GenericArgument, Ident, Path, PathArguments, Type, TypeReference};

use crate::expand::at;

/// How the value of a parameter, or a result, is written and read.
pub(crate) struct Travel<'a> {
    /// As it is written, but without the `&`.
    ty: &'a Type,
    /// The function takes a reference.
    by_ref: bool,
    kind: Kind<'a>,
    format: Format,
}

/// In which format go values that have none of their own.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Format {
    /// Compact, and for those only who know the type.
    #[default]
    Postcard,
    /// It describes itself.
    MsgPack,
}

enum Kind<'a> {
    /// `T`: by itself.
    Plain,
    /// `&str`: the caller gives a `String`, and the worker reads it in place.
    Str,
    /// `String`.
    String,
    /// `&[T]`: the caller gives a `Vec<T>`.
    Slice(&'a Type),
    /// `Vec<T>`.
    Vec(&'a Type),
    /// Numbers that travel as one block.
    Block(&'a Type, Form),
    /// `&Path`, `&OsStr`, `&CStr`: the caller gives what `ToOwned` makes of it. Going through the
    /// trait keeps a user's own type of that name working.
    Unsized,
}

/// What holds a block.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// `&[P]`: the caller gives a `Vec<P>`, and the worker reads it in place.
    Slice,
    /// `Vec<P>`.
    Vec,
    /// `Box<[P]>`.
    Boxed,
    /// `[P; N]`.
    Array,
}

/// The types of numbers that travel as blocks.
const PRIMITIVES: [&str; 14] = [
    "u8", "u16", "u32", "u64", "u128", "usize", "i8", "i16", "i32", "i64", "i128", "isize", "f32",
    "f64",
];

impl<'a> Travel<'a> {
    /// Looks at a type as it is written, since a macro sees no more than that.
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
        // Text is the same in each.
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

    /// Where a missing trait is to be underlined: at the user's type, but with the macro's names.
    pub(crate) fn span(&self) -> Span {
        match self.kind {
            Kind::Slice(elem) => at(elem.span()),
            _ => at(self.ty.span()),
        }
    }

    /// The type that the caller gives.
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

    /// The marker that says how it travels, for those who lend it.
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

    /// The functions that encode, decode, take, and take for a reference.
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

    /// The call that appends the value of this expression to what is written, a `Result`.
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

    /// The same for a block behind which nothing comes: an `Option` of what is to follow.
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

    /// The call that writes a whole result, a `Result`: of a long block, if it is given back.
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

    /// What encodes and decodes a type that is spelled as a `Result`. Both ask for it in the same words, so that one
    /// message tells of an error that can't be sent.
    fn travels(&self, private: &TokenStream) -> TokenStream {
        let (span, ty) = (self.span(), self.ty);
        quote_spanned!(span=> {
            #[allow(unused_imports, reason = "a `Result` has the function without the trait")]
            use #private::AnyReturned as _;
            #private::Returned::<#ty>::travels()
        })
    }

    /// The call that decodes a whole result, a `Result`.
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

    /// Whether it is a block, which needs no length where nothing comes behind it.
    pub(crate) fn is_block(&self) -> bool {
        matches!(self.kind, Kind::Block(..))
    }

    /// The whole input as the value, if it is a block that the function takes as a vector: a `Result`.
    pub(crate) fn take_whole(&self, private: &TokenStream) -> Option<TokenStream> {
        let span = self.span();
        match self.kind {
            Kind::Block(elem, Form::Vec) => Some(quote_spanned!(span=>
                #private::Input::into_block::<#elem>(__pool_task_input)
            )),
            _ => None,
        }
    }

    /// The call that takes the value off `reader`, a `Result`. `last`: nothing comes behind it.
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

    /// What the function is called with, given the local variable that holds the value.
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

/// What is called `Result`, by whatever path.
fn is_result(ty: &Type) -> bool {
    plain_path(peel(ty))
        .and_then(|path| path.segments.last())
        .is_some_and(|last| last.ident == "Result")
}

/// One of the numbers that travel as blocks.
fn is_number(ty: &Type) -> bool {
    let ty = peel(ty);
    PRIMITIVES.iter().any(|name| is_primitive(ty, name))
}

/// `String`, or the same by its full path.
fn is_string(ty: &Type) -> bool {
    standard(ty, &["std", "alloc"], "string", "String").is_some_and(|arguments| arguments.is_none())
}

/// The `T` of `Vec<T>`, or of the same by its full path. Another path, `arena::Vec<u8>`, is another type.
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

/// The arguments of a type of the standard library, by its name alone or by its full path.
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

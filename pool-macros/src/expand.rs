//! Generates the code of a task.
//!
//! Every path is absolute, and every name that the macro invents begins with `__pool_task`. Item
//! names are not hygienic, and neither are the unit structs that stand for tasks: a local variable
//! `result` of the macro would clash with a task called `result`.

use proc_macro2::{Span, TokenStream, TokenTree};
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::ext::IdentExt;
use syn::{FnArg, Ident, Pat, ReturnType, Signature, Type};

use crate::args::{self, Options};
use crate::attributes::{self, Sorted};
use crate::errors::Errors;
use crate::param::Travel;
use crate::parse::Function;

/// Expands a function that follows every rule; `errors` are mistakes in the options.
pub(crate) fn task(function: &Function, options: &Options, errors: Errors) -> TokenStream {
    let parts = Parts::new(function, options);
    let Parts {
        private,
        task,
        call,
        ..
    } = &parts;
    let Sorted { on_block, cfg, .. } = &parts.attrs;
    let format = options.format.unwrap_or_default();
    let params: Vec<Travel<'_>> = types(&function.sig)
        .map(|ty| Travel::of(ty, format))
        .collect();

    let output = match &function.sig.output {
        ReturnType::Default => quote!(()),
        ReturnType::Type(_, ty) => ty.to_token_stream(),
    };
    let constants = parts.constants();
    let result = match &function.sig.output {
        ReturnType::Default => None,
        ReturnType::Type(_, ty) => Some(Travel::of(ty, format)),
    };
    let codec = codec(private, &params, result.as_ref());
    let run = run(private, call, &params, result.as_ref());
    let target = fn_pointer(&function.sig);
    let (before, inside) = parts.definitions();
    let errors = errors
        .into_invocations()
        .map(|error| quote!(#(#cfg)* #error));
    // An error about the types as a whole should point at the signature.
    let args = params.iter().map(Travel::owned);
    let args = quote_spanned!(at(function.sig.paren_token.span.join())=> (#(#args,)*));
    let markers = params
        .iter()
        .map(|param| param.marker(&private.at(param.span())));
    let types = quote_spanned!(at(function.sig.ident.span())=>
        type Args = #args;
        type Output = #output;
        type Params = (#(#markers,)*);
    );
    let deref_type = quote_spanned!(at(function.sig.ident.span())=> type Target = #target;);
    let name = quote!(<#task as #private::Task>::NAME);
    let id = quote!(<#task as #private::Task>::ID);

    quote! {
        #before
        #(#cfg)*
        #(#on_block)*
        const _: () = {
            #inside

            #[automatically_derived]
            impl #private::Task for #task {
                #types
                #constants

                fn number() -> ::core::primitive::u32 {
                    __POOL_TASK_NUMBER.get()
                }

                #codec
            }

            static __POOL_TASK_NUMBER: #private::Number = #private::Number::new();

            #[automatically_derived]
            impl ::core::ops::Deref for #task {
                #deref_type

                fn deref(&self) -> &Self::Target {
                    &(#call as #target)
                }
            }

            #run

            #private::inventory::submit! {
                #private::Registration::new(#name, #id, __pool_task_run, &__POOL_TASK_NUMBER)
            }
        };
        #(#errors)*
    }
}

/// What a full expansion and the stub emitted after an error have in common.
pub(crate) struct Parts<'a> {
    function: &'a Function,
    options: &'a Options,
    /// The path of `pool_core::__private`.
    pub(crate) private: Private,
    /// The struct.
    pub(crate) task: &'a Ident,
    /// The name of the function with the user's body.
    pub(crate) call: Ident,
    pub(crate) attrs: Sorted,
}

impl<'a> Parts<'a> {
    pub(crate) fn new(function: &'a Function, options: &'a Options) -> Self {
        let name = &function.sig.ident;
        // A handle with the function's name has been reported as a mistake.
        let handle = options.handle.as_ref().filter(|handle| *handle != name);
        let (task, call) = match handle {
            Some(handle) => (handle, name.clone()),
            // The user did not choose this name, so lints about names should ignore it.
            None => {
                let span = at(name.span());
                let plain = name.unraw();
                (name, format_ident!("__pool_task_fn_{plain}", span = span))
            }
        };
        Parts {
            function,
            options,
            private: Private(args::core_path(options)),
            task,
            call,
            attrs: attributes::sort(function, handle.is_some()),
        }
    }

    /// The struct and the function: first the part outside the block, then the part inside.
    pub(crate) fn definitions(&self) -> (TokenStream, TokenStream) {
        let Function { vis, sig, body, .. } = self.function;
        let Sorted {
            cfg,
            on_struct,
            on_function,
            ..
        } = &self.attrs;
        let task = self.task;
        let derive = quote! {
            #[derive(::core::clone::Clone, ::core::marker::Copy, ::core::fmt::Debug)]
        };
        if self.task != &sig.ident {
            let doc = format!(" The pool task of [`{}()`].", sig.ident);
            let beside = quote! {
                #(#cfg)* #(#on_function)*
                #vis #sig #body

                #[doc = #doc]
                #(#cfg)* #(#on_struct)*
                #derive
                #vis struct #task;
            };
            return (beside, TokenStream::new());
        }
        // The struct cannot be called in a constant, so `const` would serve nobody.
        let sig = Signature {
            constness: None,
            ident: self.call.clone(),
            ..sig.clone()
        };
        let beside = quote! {
            #(#cfg)* #(#on_struct)*
            #[allow(non_camel_case_types, reason = "a task has the name of its function")]
            #derive
            #vis struct #task;
        };
        (beside, quote!(#(#on_function)* #sig #body))
    }

    /// `NAME` and `ID`, and the defaults of calls.
    pub(crate) fn constants(&self) -> TokenStream {
        let name = match &self.options.name {
            Some(name) => name.to_token_stream(),
            None => {
                let name = self.function.sig.ident.unraw().to_string();
                quote!(::core::concat!(::core::module_path!(), "::", #name))
            }
        };
        // `line!` and `column!` give the place where the outermost macro is invoked. Two functions
        // in one `macro_rules!` differ only in the positions of their names.
        let place = self.function.sig.ident.span().start();
        let place = format!("@{}:{}", place.line, place.column);
        // Both were checked when they were parsed.
        let time_limit = self.options.time_limit.as_ref().and_then(|limit| {
            let limit = humantime::parse_duration(&limit.value()).ok()?;
            let (seconds, nanos) = (limit.as_secs(), limit.subsec_nanos());
            Some(quote! {
                const TIME_LIMIT: ::core::option::Option<::core::time::Duration> =
                    ::core::option::Option::Some(::core::time::Duration::new(#seconds, #nanos));
            })
        });
        let retries = self.options.retries.as_ref().and_then(|retries| {
            let retries: u32 = retries.base10_parse().ok()?;
            Some(quote! {
                const RETRIES: ::core::option::Option<::core::primitive::u32> =
                    ::core::option::Option::Some(#retries);
            })
        });
        quote! {
            #time_limit
            #retries
            const NAME: &'static ::core::primitive::str = #name;
            const ID: &'static ::core::primitive::str = ::core::concat!(
                #name, "@", ::core::file!(), ":", ::core::line!(), ":", ::core::column!(), #place
            );
        }
    }
}

/// The location of `span`, but names resolve as at the macro's call site.
pub(crate) fn at(span: Span) -> Span {
    span.resolved_at(Span::call_site())
}

/// The path of `pool_core::__private`.
pub(crate) struct Private(TokenStream);

impl Private {
    /// The same path, located at the user's token to which errors about its use should point.
    fn at(&self, span: Span) -> TokenStream {
        let path = self.to_token_stream().into_iter();
        path.map(|mut token: TokenTree| {
            token.set_span(token.span().located_at(span));
            token
        })
        .collect()
    }
}

impl ToTokens for Private {
    fn to_tokens(&self, tokens: &mut TokenStream) {
        let path = &self.0;
        tokens.extend(quote!(#path::__private));
    }
}

/// The types of the parameters, as written.
fn types(sig: &Signature) -> impl Iterator<Item = &Type> {
    sig.inputs.iter().filter_map(|input| match input {
        FnArg::Typed(param) => Some(&*param.ty),
        FnArg::Receiver(_) => None,
    })
}

/// `fn(x: u64) -> u64`: the names are for readers of the struct's documentation.
fn fn_pointer(sig: &Signature) -> TokenStream {
    let inputs = sig.inputs.iter().filter_map(|input| match input {
        FnArg::Typed(param) => {
            let ty = &param.ty;
            Some(match &*param.pat {
                Pat::Ident(pat) => {
                    let name = &pat.ident;
                    quote!(#name: #ty)
                }
                _ => quote!(#ty),
            })
        }
        FnArg::Receiver(_) => None,
    });
    let output = &sig.output;
    quote!(fn(#(#inputs),*) #output)
}

/// The caller's side: `encode_args` and `decode_output`.
fn codec(private: &Private, params: &[Travel<'_>], output: Option<&Travel<'_>>) -> TokenStream {
    let (last_block, others) = split_last_block(params);
    let field = |position: usize, span: Span| {
        let index = syn::Index {
            index: position as u32,
            span,
        };
        quote_spanned!(span=> __pool_task_args.#index)
    };
    let encode = others.iter().enumerate().map(|(position, param)| {
        let span = param.span();
        let encode = param.encode(&private.at(span), &field(position, span));
        quote_spanned!(span=> #encode?;)
    });
    let tail = match last_block {
        None => quote!(::core::option::Option::None),
        Some(param) => {
            let span = param.span();
            param.give_last(&private.at(span), &field(others.len(), span))
        }
    };
    let start = params
        .iter()
        .any(Travel::is_block)
        .then(|| quote!(let __pool_task_start = __pool_task_out.len();));
    let decode = match output {
        None => quote!(#private::decode::<()>(&__pool_task_bytes)),
        Some(output) => output.decode_output(&private.at(output.span())),
    };
    quote! {
        fn encode_args(
            __pool_task_args: Self::Args,
            __pool_task_out: &mut ::std::vec::Vec<::core::primitive::u8>,
        ) -> ::core::result::Result<
            ::core::option::Option<#private::Tail>,
            #private::CodecError,
        > {
            #start
            #(#encode)*
            ::core::result::Result::Ok(#tail)
        }

        fn decode_output(
            __pool_task_bytes: #private::Arrived<'_>,
        ) -> ::core::result::Result<Self::Output, #private::CodecError> {
            #decode
        }
    }
}

/// The last parameter, if it is a block; and the others.
fn split_last_block<'p, 'a>(
    params: &'p [Travel<'a>],
) -> (Option<&'p Travel<'a>>, &'p [Travel<'a>]) {
    match params.split_last() {
        Some((last, others)) if last.is_block() => (Some(last), others),
        _ => (None, params),
    }
}

/// The worker's side: decode, call, encode.
fn run(
    private: &Private,
    call: &Ident,
    params: &[Travel<'_>],
    output: Option<&Travel<'_>>,
) -> TokenStream {
    let reader = format_ident!("__pool_task_reader");
    let decode_error = quote!(#private::RunError::Decode);
    let locals: Vec<Ident> = (0..params.len())
        .map(|position| format_ident!("__pool_task_arg{position}"))
        .collect();
    let (last_block, others) = split_last_block(params);
    let whole = match params {
        [only] => only.take_whole(&private.at(only.span())),
        _ => None,
    };
    let read = match (whole, locals.first()) {
        (Some(whole), Some(local)) => quote!(let #local = #whole.map_err(#decode_error)?;),
        _ => {
            let takes = params
                .iter()
                .zip(&locals)
                .enumerate()
                .map(|(at, (param, local))| {
                    let take = param.take(&private.at(param.span()), &reader, at >= others.len());
                    quote!(let #local = #take.map_err(#decode_error)?;)
                });
            // A last block takes all bytes that are left.
            let finish = last_block
                .is_none()
                .then(|| quote!(#reader.finish().map_err(#decode_error)?;));
            quote! {
                let mut #reader = #private::Reader::new(&__pool_task_input);
                #(#takes)*
                #finish
            }
        }
    };
    let passed = params
        .iter()
        .zip(&locals)
        .map(|(param, local)| param.pass(local));
    let call = quote!(#call(#(#passed),*));
    let result = quote!(__pool_task_result);
    let answer = match output {
        None => quote! {
            #private::encode::<()>(&#call, __pool_task_output)
                .map(|()| ::core::option::Option::None)
                .map_err(#private::RunError::Encode)
        },
        Some(output) => {
            let encode = output.encode_output(&private.at(output.span()), &result);
            quote! {
                let #result = #call;
                if __pool_task_for_effect {
                    use #private::Tell as _;
                    return #private::RunError::returned((&&&&#private::Outcome(&#result)).error());
                }
                #encode
            }
        }
    };
    quote! {
        fn __pool_task_run(
            __pool_task_input: #private::Input<'_>,
            __pool_task_output: &mut ::std::vec::Vec<::core::primitive::u8>,
            __pool_task_for_effect: ::core::primitive::bool,
        ) -> ::core::result::Result<::core::option::Option<#private::Buffer>, #private::RunError> {
            #read
            #answer
        }
    }
}

//! What is emitted besides the messages, so that one mistake gives only one message.

use proc_macro2::TokenStream;
use quote::quote;
use syn::visit::{self, Visit};
use syn::{Error, Generics, Ident, Lifetime, PatIdent, Signature, TypeInfer, TypeReference};

use crate::args::Options;
use crate::attributes::Sorted;
use crate::errors::Errors;
use crate::expand::Parts;
use crate::parse::Function;

/// The item as it was, and one message: if the item is no free function, messages about options don't help.
pub(crate) fn item(item: &TokenStream, error: Error) -> TokenStream {
    let error = error.into_compile_error();
    quote!(#item #error)
}

/// The function, and a struct whose uses cause no further errors.
///
/// The first message is emitted as the length of an array, and that array serves as each associated
/// type. rustc reports nothing about a type that contains an error, so `pool.map(bad, 0..3)` and
/// `bad(3) + 1` elsewhere add no messages.
pub(crate) fn stub(function: &Function, options: &Options, errors: Errors) -> TokenStream {
    let parts = Parts::new(function, options);
    let Parts { private, task, .. } = &parts;
    let Sorted { on_block, cfg, .. } = &parts.attrs;
    let constants = parts.constants();
    let (beside, inside) = parts.definitions();
    let inside = (!rejected_by_rustc(&function.sig, task)).then_some(inside);
    let mut errors = errors.into_invocations();
    let first = errors.next();

    quote! {
        #beside
        #(#cfg)*
        #(#on_block)*
        const _: () = {
            #inside

            impl #private::Task for #task {
                type Args = [(); #first];
                type Output = <Self as #private::Task>::Args;
                type Params = <Self as #private::Task>::Args;
                #constants

                fn number() -> ::core::primitive::u32 {
                    loop {}
                }

                fn encode_args(
                    _: Self::Args,
                    _: &mut ::std::vec::Vec<::core::primitive::u8>,
                ) -> ::core::result::Result<
                    ::core::option::Option<#private::Tail>,
                    #private::CodecError,
                > {
                    loop {}
                }

                fn decode_output(
                    _: #private::Arrived<'_>,
                ) -> ::core::result::Result<Self::Output, #private::CodecError> {
                    loop {}
                }
            }

            impl ::core::ops::Deref for #task {
                type Target = <Self as #private::Task>::Args;

                fn deref(&self) -> &Self::Target {
                    loop {}
                }
            }

            #(#errors)*
        };
    }
}

/// Whether rustc would report the signature too. Then it must not be emitted.
fn rejected_by_rustc(sig: &Signature, task: &Ident) -> bool {
    struct Rejected<'a> {
        task: &'a Ident,
        generics: &'a Generics,
        in_output: bool,
        found: bool,
    }
    impl<'ast> Visit<'ast> for Rejected<'_> {
        fn visit_pat_ident(&mut self, pat: &'ast PatIdent) {
            self.found |= pat.ident == *self.task;
            visit::visit_pat_ident(self, pat);
        }
        fn visit_type_infer(&mut self, _: &'ast TypeInfer) {
            self.found = true;
        }
        fn visit_type_reference(&mut self, ty: &'ast TypeReference) {
            self.found |= self.in_output && ty.lifetime.is_none();
            visit::visit_type_reference(self, ty);
        }
        fn visit_lifetime(&mut self, lifetime: &'ast Lifetime) {
            let mut declared = self.generics.lifetimes();
            self.found |= lifetime.ident != "static"
                && lifetime.ident != "_"
                && !declared.any(|param| param.lifetime == *lifetime);
        }
    }
    let mut rejected = Rejected {
        task,
        generics: &sig.generics,
        in_output: false,
        found: sig.variadic.is_some(),
    };
    for input in &sig.inputs {
        rejected.visit_fn_arg(input);
    }
    rejected.in_output = true;
    rejected.visit_return_type(&sig.output);
    rejected.found
}

//! The rules that a function must follow to become a task, and the message for each of them.
//!
//! Nothing here changes the function, and every rule is checked, so that one compile reports every
//! mistake.

use quote::{ToTokens, quote};
use syn::visit::{self, Visit};
use syn::{
    Error, Expr, FnArg, GenericParam, Ident, Lifetime, ParenthesizedGenericArguments, Pat,
    PatIdent, PatType, Path, ReturnType, Safety, Type, TypeFnPtr, TypeImplTrait, TypeInfer,
    TypeReference,
};

use crate::args::Options;
use crate::errors::Errors;
use crate::param::peel;
use crate::parse::Function;

/// Returns an error if this is visibly a function of an `impl` or a `trait`. The other rules don't
/// matter then, and only the function may be emitted, since no struct is allowed beside it.
///
/// A function there that uses neither `self` nor `Self` looks like any other; rustc then reports
/// that a struct is not allowed there.
pub(crate) fn associated(function: &Function) -> Option<Error> {
    let name = &function.sig.ident;
    if let Some(receiver) = function.sig.receiver() {
        return Some(Error::new_spanned(
            receiver.self_token,
            format_args!(
                "`{name}` takes `self`, but a pool task must be a free function: move it out of \
                 the `impl` and take the value as a parameter"
            ),
        ));
    }
    let mut mentions = Mentions(None);
    mentions.visit_signature(&function.sig);
    mentions.0.map(|ident| {
        Error::new_spanned(
            ident,
            format_args!(
                "`{name}` uses `Self`, but a pool task must be a free function: move it out of \
                 the `impl` and write the type's name"
            ),
        )
    })
}

struct Mentions<'a>(Option<&'a Ident>);

impl<'a> Visit<'a> for Mentions<'a> {
    fn visit_path(&mut self, path: &'a Path) {
        let first = path.segments.first().map(|segment| &segment.ident);
        self.0 = self.0.or(first.filter(|ident| *ident == "Self"));
        visit::visit_path(self, path);
    }
}

/// Checks every rule on a free function.
pub(crate) fn function(function: &Function, options: &Options, errors: &mut Errors) {
    let mut rules = Rules {
        function,
        options,
        errors,
    };
    rules.names();
    rules.qualifiers();
    rules.generics();
    for input in &function.sig.inputs {
        match input {
            FnArg::Receiver(_) => {}
            FnArg::Typed(param) => rules.parameter(param),
        }
    }
    if let Some(variadic) = &function.sig.variadic {
        rules.at(
            variadic.dots,
            "is variadic, but the pool must know the type of each argument: take a `Vec<T>` \
             instead",
        );
    }
    if let ReturnType::Type(_, ty) = &function.sig.output {
        rules.output(ty);
    }
}

struct Rules<'a> {
    function: &'a Function,
    options: &'a Options,
    errors: &'a mut Errors,
}

impl Rules<'_> {
    /// Adds a message that begins with the name of the function.
    fn at(&mut self, tokens: impl ToTokens, message: &str) {
        let name = &self.function.sig.ident;
        self.errors.at(tokens, format_args!("`{name}` {message}"));
    }

    fn names(&mut self) {
        let name = &self.function.sig.ident;
        if let Some(handle) = self
            .options
            .handle
            .as_ref()
            .filter(|handle| *handle == name)
        {
            self.at(
                handle,
                "is already the name of the function: choose another name for the handle, or \
                 remove `handle` and pass the function's name to the pool",
            );
        }
        for attr in &self.function.attrs {
            let last = attr.path().segments.last();
            if last.is_some_and(|last| last.ident == "pool_task") {
                self.at(attr, "has `#[pool_task]` twice: remove one of them");
            }
        }
    }

    fn qualifiers(&mut self) {
        let sig = &self.function.sig;
        if let Some(token) = sig.asyncness {
            self.at(
                token,
                "is `async`, but a worker calls a task like any other function: remove `async`, \
                 and block on the future inside the function",
            );
        }
        if let Safety::Unsafe(token) = sig.safety {
            self.at(
                token,
                "is `unsafe`, but the pool cannot uphold its safety requirements: wrap the \
                 function in a safe one and make that the task",
            );
        }
        if let Some(abi) = &sig.abi {
            self.at(
                abi,
                "is `extern`, but a pool task must use Rust's own calling convention: remove \
                 `extern`, or wrap the function in a plain one and make that the task",
            );
        }
    }

    fn generics(&mut self) {
        let generics = &self.function.sig.generics;
        let (lifetimes, types): (Vec<_>, Vec<_>) = generics
            .params
            .iter()
            .partition(|param| matches!(param, GenericParam::Lifetime(_)));
        if !lifetimes.is_empty() {
            self.at(
                quote!(#(#lifetimes),*),
                "declares a lifetime, but a task borrows its arguments only while it runs: \
                 remove it, and write plain references such as `&str`",
            );
        }
        if !types.is_empty() {
            self.at(
                quote!(#(#types),*),
                "is generic, but a pool task must be a single concrete function: write one \
                 function for each type that you need",
            );
        }
        if let Some(clause) = generics
            .where_clause
            .as_ref()
            .filter(|_| generics.params.is_empty())
        {
            self.at(
                clause.where_token,
                "has a `where` clause, which only a generic function needs: remove it",
            );
        }
    }

    fn parameter(&mut self, param: &PatType) {
        for attr in &param.attrs {
            if attr.path().is_ident("cfg") || attr.path().is_ident("cfg_attr") {
                self.at(
                    attr,
                    "has a conditional parameter, but the parameters of a task must be fixed: \
                     write two functions, each with its own `#[cfg]`",
                );
            }
        }
        if self.options.handle.is_none() {
            self.own_name(&param.pat);
        }
        let Type::Reference(reference) = peel(&param.ty) else {
            self.within(&param.ty, Place::Parameter);
            return;
        };
        if let Some(token) = reference.mutability {
            let and = reference.and_token;
            self.at(
                quote!(#and #token),
                "takes `&mut`, but its changes would stay in the worker: take the value itself, \
                 and return it",
            );
        }
        if let Some(lifetime) = &reference.lifetime {
            self.lifetime(lifetime);
        }
        if let Type::TraitObject(object) = peel(&reference.elem) {
            self.at(
                object,
                "takes a trait object, which cannot be sent to another process: take a concrete \
                 type, or an enum of the possible types",
            );
        } else {
            self.within(&reference.elem, Place::Parameter);
        }
    }

    /// A binding with the name of a unit struct is a pattern that matches the struct, and rustc's
    /// message about that does not help somebody who wrote a function.
    fn own_name(&mut self, pat: &Pat) {
        struct Bindings<'a> {
            name: &'a Ident,
            found: Option<&'a Ident>,
        }
        impl<'a> Visit<'a> for Bindings<'a> {
            fn visit_pat_ident(&mut self, pat: &'a PatIdent) {
                if pat.ident == *self.name {
                    self.found = Some(&pat.ident);
                }
                visit::visit_pat_ident(self, pat);
            }
        }
        let mut bindings = Bindings {
            name: &self.function.sig.ident,
            found: None,
        };
        bindings.visit_pat(pat);
        if let Some(ident) = bindings.found {
            self.at(
                ident,
                "has a parameter of the same name, but here that name means the task: rename the \
                 parameter, or give the task another name with `#[pool_task(handle = …)]`",
            );
        }
    }

    fn output(&mut self, ty: &Type) {
        match peel(ty) {
            Type::Never(never) => self.at(
                never,
                "never returns, so its caller would wait forever for a result: return `()` \
                 instead of `!`",
            ),
            Type::Reference(reference) => {
                let owned = match peel(&reference.elem) {
                    Type::Slice(_) => "a `Vec` instead",
                    Type::Path(path) if path.path.is_ident("str") => "a `String` instead",
                    _ => "the value itself instead",
                };
                let message =
                    format!("returns a reference, which cannot leave the worker: return {owned}");
                self.at(reference, &message);
            }
            _ => self.within(ty, Place::Output),
        }
    }

    fn within(&mut self, ty: &Type, place: Place) {
        let outer = peel(ty);
        Within {
            rules: self,
            place,
            outer,
        }
        .visit_type(ty);
    }

    fn lifetime(&mut self, lifetime: &Lifetime) {
        let mut declared = self.function.sig.generics.lifetimes();
        // A declared lifetime has its message already.
        if !declared.any(|param| param.lifetime == *lifetime) {
            let message = format!(
                "uses the lifetime `{lifetime}`, but a task borrows its arguments only while it \
                 runs: remove the lifetime"
            );
            self.at(lifetime, &message);
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Place {
    Parameter,
    Output,
}

/// Looks for what is not allowed inside a type.
struct Within<'r, 'a, 't> {
    rules: &'r mut Rules<'a>,
    place: Place,
    /// The whole type, without a leading `&`.
    outer: &'t Type,
}

impl<'ast> Visit<'ast> for Within<'_, '_, '_> {
    fn visit_type_reference(&mut self, ty: &'ast TypeReference) {
        let what = match self.place {
            Place::Parameter => {
                "takes a reference inside another type, which cannot be sent to another process"
            }
            Place::Output => {
                "returns a reference inside another type, which cannot leave the worker"
            }
        };
        let (owned, lent) = owner(ty);
        let (owned, lent) = (inside(self.outer, owned), inside(self.outer, lent));
        let message =
            format!("{what}: use a type that owns the data, `{owned}` instead of `{lent}`");
        self.rules.at(ty, &message);
    }

    fn visit_type_impl_trait(&mut self, ty: &'ast TypeImplTrait) {
        let message = match self.place {
            Place::Parameter => {
                "takes `impl Trait`, which makes it generic: name one concrete type"
            }
            Place::Output => {
                "returns `impl Trait`, so the caller has no type to decode the result into: name \
                 the type, or collect into a `Vec`"
            }
        };
        self.rules.at(ty, message);
    }

    fn visit_type_infer(&mut self, ty: &'ast TypeInfer) {
        self.rules.at(ty, "uses `_` as a type: write the type out");
    }

    fn visit_lifetime(&mut self, lifetime: &'ast Lifetime) {
        // `Cow<'static, str>` is decoded as the owned variant, so it is allowed anywhere.
        if lifetime.ident != "static" {
            self.rules.lifetime(lifetime);
        }
    }

    // What these contain is not part of the value that is sent.
    fn visit_type_fn_ptr(&mut self, _: &'ast TypeFnPtr) {}
    fn visit_parenthesized_generic_arguments(&mut self, _: &'ast ParenthesizedGenericArguments) {}
    fn visit_expr(&mut self, _: &'ast Expr) {}
}

/// The owned form of a reference, and the reference.
fn owner(reference: &TypeReference) -> (&'static str, &'static str) {
    match peel(&reference.elem) {
        Type::Slice(_) => ("Vec<T>", "&[T]"),
        Type::Path(path) if path.path.is_ident("str") => ("String", "&str"),
        Type::Path(path) if path.path.is_ident("Path") => ("PathBuf", "&Path"),
        _ => ("T", "&T"),
    }
}

/// Writes `inner` inside `outer`, if `outer` is one of a few standard types; otherwise `inner` alone.
fn inside(outer: &Type, inner: &str) -> String {
    match outer {
        Type::Slice(_) => format!("&[{inner}]"),
        Type::Array(_) => format!("[{inner}; N]"),
        Type::Path(path) => match path.path.segments.last() {
            Some(last) if last.ident == "Option" || last.ident == "Vec" => {
                format!("{}<{inner}>", last.ident)
            }
            _ => inner.to_owned(),
        },
        _ => inner.to_owned(),
    }
}

//! What a function must be to become a task: every rule, and the message about each.
//!
//! Nothing here changes the function, and every rule is tried, so that one compile names every
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

/// Is this a function of an `impl` or a `trait`? No other rule matters then, and nothing but the
/// function may be emitted, since a struct cannot stand beside it.
///
/// A function there that mentions neither `self` nor `Self` looks like any other; rustc then says
/// that it cannot have a struct there.
pub(crate) fn associated(function: &Function) -> Option<Error> {
    let name = &function.sig.ident;
    if let Some(receiver) = function.sig.receiver() {
        return Some(Error::new_spanned(
            receiver.self_token,
            format_args!(
                "`{name}` takes `self`: a pool task is a free function, which may take the value \
                 as a parameter"
            ),
        ));
    }
    let mut mentions = Mentions(None);
    mentions.visit_signature(&function.sig);
    mentions.0.map(|ident| {
        Error::new_spanned(
            ident,
            format_args!(
                "`{name}` mentions `Self`: a pool task is a free function, outside of any `impl`"
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

/// Tries every rule on a free function.
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
            "is variadic, and the pool must know the type of each argument: take a `Vec<T>`",
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
                "cannot name both the function and its handle: choose another name, or leave \
                 `handle` out, and the name of the function is the handle",
            );
        }
        for attr in &self.function.attrs {
            let last = attr.path().segments.last();
            if last.is_some_and(|last| last.ident == "pool_task") {
                self.at(attr, "bears `#[pool_task]` twice: keep one of the two");
            }
        }
    }

    fn qualifiers(&mut self) {
        let sig = &self.function.sig;
        if let Some(token) = sig.asyncness {
            self.at(
                token,
                "is `async`, and a worker runs a task to its end: remove `async`, and block on \
                 the future inside of the function",
            );
        }
        if let Safety::Unsafe(token) = sig.safety {
            self.at(
                token,
                "is `unsafe`, and the pool cannot promise what it asks of its callers: make a \
                 safe function around it the task",
            );
        }
        if let Some(abi) = &sig.abi {
            self.at(
                abi,
                "has a calling convention of its own: remove `extern`, or make a plain function \
                 around it the task",
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
                "declares a lifetime, and a task sees its arguments for one call only: remove \
                 it, and write plain references such as `&str`",
            );
        }
        if !types.is_empty() {
            self.at(
                quote!(#(#types),*),
                "is generic, and a worker finds a task by its name alone: write one function for \
                 each concrete type",
            );
        }
        if let Some(clause) = generics
            .where_clause
            .as_ref()
            .filter(|_| generics.params.is_empty())
        {
            self.at(
                clause.where_token,
                "has a `where` clause, which a function without generics does not need: remove it",
            );
        }
    }

    fn parameter(&mut self, param: &PatType) {
        for attr in &param.attrs {
            if attr.path().is_ident("cfg") || attr.path().is_ident("cfg_attr") {
                self.at(
                    attr,
                    "has a parameter that is not always there: write two functions, each with a \
                     `#[cfg]` of its own",
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
                "takes `&mut`, and what it changes would stay in the worker: take the value \
                 itself and return it",
            );
        }
        if let Some(lifetime) = &reference.lifetime {
            self.lifetime(lifetime);
        }
        if let Type::TraitObject(object) = peel(&reference.elem) {
            self.at(
                object,
                "takes a trait object, which cannot be sent to another process: take a concrete \
                 type, or an enum of those that it may be",
            );
        } else {
            self.within(&reference.elem, Place::Parameter);
        }
    }

    /// A binding that bears the name of a unit struct is a pattern that matches the struct, and
    /// rustc says so in words that do not help whoever wrote a function.
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
                "has a parameter of its own name, which stands for the task here: rename the \
                 parameter, or give the task another name with `#[pool_task(handle = …)]`",
            );
        }
    }

    fn output(&mut self, ty: &Type) {
        match peel(ty) {
            Type::Never(never) => self.at(
                never,
                "never returns, and whoever asks for its result would wait for ever: let it \
                 return `()`",
            ),
            Type::Reference(reference) => {
                let owned = match peel(&reference.elem) {
                    Type::Slice(_) => "a `Vec` instead",
                    Type::Path(path) if path.path.is_ident("str") => "a `String` instead",
                    _ => "the value itself",
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
        // A declared one is already the subject of a message.
        if !declared.any(|param| param.lifetime == *lifetime) {
            let message = format!(
                "names the lifetime `{lifetime}`, and a task sees its arguments for one call \
                 only: remove the lifetime"
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

/// Looks for what may not stand inside of a type.
struct Within<'r, 'a, 't> {
    rules: &'r mut Rules<'a>,
    place: Place,
    /// The type that it stands in, without the `&` before that.
    outer: &'t Type,
}

impl<'ast> Visit<'ast> for Within<'_, '_, '_> {
    fn visit_type_reference(&mut self, ty: &'ast TypeReference) {
        let what = match self.place {
            Place::Parameter => {
                "takes a reference inside of another type, which cannot be sent to another process"
            }
            Place::Output => {
                "returns a reference inside of another type, which cannot leave the worker"
            }
        };
        let (owned, lent) = owner(ty);
        let (owned, lent) = (inside(self.outer, owned), inside(self.outer, lent));
        let message = format!("{what}: write what owns the data, `{owned}` for `{lent}`");
        self.rules.at(ty, &message);
    }

    fn visit_type_impl_trait(&mut self, ty: &'ast TypeImplTrait) {
        let message = match self.place {
            Place::Parameter => {
                "takes an `impl Trait`, which makes it generic: name one concrete type"
            }
            Place::Output => {
                "returns an `impl Trait`, which has no name to decode it by: name the type, or \
                 collect into a `Vec`"
            }
        };
        self.rules.at(ty, message);
    }

    fn visit_type_infer(&mut self, ty: &'ast TypeInfer) {
        self.rules
            .at(ty, "leaves a type open: write it out instead of `_`");
    }

    fn visit_lifetime(&mut self, lifetime: &'ast Lifetime) {
        // `Cow<'static, str>` is decoded into what it owns, so it may stand anywhere.
        if lifetime.ident != "static" {
            self.rules.lifetime(lifetime);
        }
    }

    // What these hold is not part of the value that travels.
    fn visit_type_fn_ptr(&mut self, _: &'ast TypeFnPtr) {}
    fn visit_parenthesized_generic_arguments(&mut self, _: &'ast ParenthesizedGenericArguments) {}
    fn visit_expr(&mut self, _: &'ast Expr) {}
}

/// What owns what a reference lends, and that.
fn owner(reference: &TypeReference) -> (&'static str, &'static str) {
    match peel(&reference.elem) {
        Type::Slice(_) => ("Vec<T>", "&[T]"),
        Type::Path(path) if path.path.is_ident("str") => ("String", "&str"),
        Type::Path(path) if path.path.is_ident("Path") => ("PathBuf", "&Path"),
        _ => ("T", "&T"),
    }
}

/// The same inside of a type such as this, if that is one which everybody knows.
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

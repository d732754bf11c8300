//! The options of the attribute.

use proc_macro2::{Span, TokenStream};
use quote::ToTokens;
use syn::ext::IdentExt;
use syn::parse::{Parse, ParseStream, Parser};
use syn::{Error, Ident, LitInt, LitStr, Path, Token};

use crate::errors::Errors;
use crate::param::Format;

const EXPECTED: &str = "expected one of `name = \"…\"`, `handle = Ident`, `time_limit = \"5s\"`, \
                        `retries = 2`, `format = \"msgpack\"` or `crate = path`";

/// The options between the parentheses of `#[pool_task(…)]`.
#[derive(Default)]
pub(crate) struct Options {
    /// The name shown in errors instead of `crate::module::function`.
    pub(crate) name: Option<LitStr>,
    /// The name of the struct, if the function is to keep its own name.
    pub(crate) handle: Option<Ident>,
    /// How long an input may run, unless the call sets a limit.
    pub(crate) time_limit: Option<LitStr>,
    /// How many times an input may be run again, unless the call sets its own number.
    pub(crate) retries: Option<LitInt>,
    /// The format of arguments and results.
    pub(crate) format: Option<Format>,
    /// The path to `pool_core`.
    pub(crate) krate: Option<Path>,
}

/// Parses the options, and continues after a mistake in one of them.
///
/// ```text
/// options = [ option { "," option } [ "," ] ]
/// option  = "name"       "=" string literal, not empty
///         | "handle"     "=" identifier
///         | "time_limit" "=" string literal, a duration above zero
///         | "retries"    "=" integer literal, a `u32`
///         | "format"     "=" "postcard" or "msgpack", as a string literal
///         | "crate"      "=" path without generic arguments
/// ```
///
/// Options may come in any order, each at most once.
pub(crate) fn parse(tokens: TokenStream, errors: &mut Errors) -> Options {
    let mut options = Options::default();
    let parser = |input: ParseStream<'_>| {
        while !input.is_empty() {
            if let Err(error) = options.parse_one(input) {
                errors.push(error);
                skip_to_comma(input)?;
            }
            if !input.is_empty() {
                input.parse::<Token![,]>()?;
            }
        }
        Ok(())
    };
    if let Err(error) = parser.parse2(tokens) {
        errors.push(error);
    }
    options
}

impl Options {
    fn parse_one(&mut self, input: ParseStream<'_>) -> syn::Result<()> {
        if !input.peek(Ident::peek_any) {
            return Err(input.error(EXPECTED));
        }
        let key = input.call(Ident::parse_any)?;
        match key.to_string().as_str() {
            "name" => {
                let wanted = "a string literal, as in `name = \"resize\"`";
                let name = value(&key, input, <LitStr as Parse>::parse, wanted)?;
                if name.value().is_empty() {
                    return Err(Error::new(
                        name.span(),
                        "`name` must not be empty: errors identify the task by it",
                    ));
                }
                set(&mut self.name, &key, name)?;
            }
            "handle" => {
                let wanted = "an identifier, as in `handle = Square`";
                let handle = value(&key, input, <Ident as Parse>::parse, wanted)?;
                set(&mut self.handle, &key, handle)?;
            }
            "time_limit" => {
                let wanted = "a duration, as in `time_limit = \"5s\"` or `\"1m 30s\"`";
                let limit = value(&key, input, <LitStr as Parse>::parse, wanted)?;
                let duration = humantime::parse_duration(&limit.value()).map_err(|error| {
                    Error::new(
                        limit.span(),
                        format_args!("`{key}` takes {wanted}: {error}"),
                    )
                })?;
                if duration.is_zero() {
                    return Err(Error::new(
                        limit.span(),
                        format_args!("`{key}` must be greater than zero"),
                    ));
                }
                set(&mut self.time_limit, &key, limit)?;
            }
            "retries" => {
                let wanted = "the number of attempts after the first, as in `retries = 2`";
                let retries = value(&key, input, <LitInt as Parse>::parse, wanted)?;
                retries.base10_parse::<u32>().map_err(|error| {
                    Error::new(
                        retries.span(),
                        format_args!("`{key}` takes {wanted}: {error}"),
                    )
                })?;
                set(&mut self.retries, &key, retries)?;
            }
            "format" => {
                let wanted = "`\"postcard\"` (the default) or `\"msgpack\"`";
                let name = value(&key, input, <LitStr as Parse>::parse, wanted)?;
                let format = match name.value().as_str() {
                    "postcard" => Format::Postcard,
                    "msgpack" => Format::MsgPack,
                    _ => {
                        return Err(Error::new(
                            name.span(),
                            format_args!("`{key}` takes {wanted}"),
                        ));
                    }
                };
                set(&mut self.format, &key, format)?;
            }
            "crate" => {
                let wanted = "a path, as in `crate = ::pool_core`";
                let path = value(&key, input, Path::parse_mod_style, wanted)?;
                set(&mut self.krate, &key, path)?;
            }
            unknown => {
                return Err(Error::new(
                    key.span(),
                    format_args!("unknown option `{unknown}`: {EXPECTED}"),
                ));
            }
        }
        if input.is_empty() || input.peek(Token![,]) {
            Ok(())
        } else {
            Err(input.error(format_args!("expected `,` after the option `{key}`")))
        }
    }
}

/// Parses `= value`; the error says what value was expected.
fn value<T>(
    key: &Ident,
    input: ParseStream<'_>,
    parse: fn(ParseStream<'_>) -> syn::Result<T>,
    wanted: &str,
) -> syn::Result<T> {
    let message = format!("`{key}` takes {wanted}");
    if !input.peek(Token![=]) {
        return Err(Error::new(key.span(), message));
    }
    input.parse::<Token![=]>()?;
    let found = if input.is_empty() {
        key.span()
    } else {
        input.span()
    };
    parse(input).map_err(|_| Error::new(found, message))
}

fn set<T>(slot: &mut Option<T>, key: &Ident, value: T) -> syn::Result<()> {
    if slot.is_some() {
        return Err(Error::new(
            key.span(),
            format_args!("the option `{key}` is given twice: remove one of them"),
        ));
    }
    *slot = Some(value);
    Ok(())
}

/// Skips the rest of an option that could not be parsed.
fn skip_to_comma(input: ParseStream<'_>) -> syn::Result<()> {
    while !input.is_empty() && !input.peek(Token![,]) {
        input.parse::<proc_macro2::TokenTree>()?;
    }
    Ok(())
}

/// The path to `pool_core`: the one given by `crate = path`, or else the name it has in the
/// `Cargo.toml` of the user's crate.
pub(crate) fn core_path(options: &Options) -> TokenStream {
    use proc_macro_crate::{FoundCrate, crate_name};

    if let Some(path) = &options.krate {
        return path.to_token_stream();
    }
    let name = match crate_name("pool-core") {
        Ok(FoundCrate::Name(name)) => name,
        // `pool-core` does not name itself in its `Cargo.toml`, but its doctests, integration
        // tests and (through `extern crate self`) unit tests all know it by this name, which is
        // also the best guess if no `Cargo.toml` can be read.
        Ok(FoundCrate::Itself) | Err(_) => String::from("pool_core"),
    };
    let name = Ident::new(&name, Span::call_site());
    quote::quote!(::#name)
}

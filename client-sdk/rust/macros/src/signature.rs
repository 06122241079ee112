//! What a signature means for remote calls.

use proc_macro2::{Ident, TokenStream};
use quote::quote;
use syn::parse::{Parse, ParseStream};
use syn::punctuated::Punctuated;
use syn::{
    Expr, FnArg, GenericArgument, Pat, PathArguments, ReturnType, Signature, Token, Type, TypeParamBound,
};

/// `#[remote(cpus = 0.5, num_returns = 2)]`
pub(crate) struct Settings {
    /// How many refs a call gives.
    pub(crate) num_returns: Option<syn::LitInt>,
    /// Calls on `Options`.
    pub(crate) options: TokenStream,
}

struct Setting {
    name: Ident,
    value: Expr,
}

impl Parse for Setting {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let name = input.parse()?;
        input.parse::<Token![=]>()?;
        Ok(Setting { name, value: input.parse()? })
    }
}

impl Parse for Settings {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let mut settings = Settings { num_returns: None, options: TokenStream::new() };
        for Setting { name, value } in Punctuated::<Setting, Token![,]>::parse_terminated(input)? {
            if name == "num_returns" {
                settings.num_returns = Some(syn::parse2(quote!(#value))?);
            } else {
                settings.options.extend(quote!(.#name(#value)));
            }
        }
        Ok(settings)
    }
}

/// A parameter that a caller gives.
pub(crate) struct Parameter {
    pub(crate) name: Ident,
    pub(crate) kind: Type,
}

/// What calls give back.
pub(crate) enum Returns {
    One(Type),
    /// `num_returns`: each of a tuple's.
    Many(Vec<Type>),
    /// `impl Iterator<Item = T>`.
    Stream(Type),
}

/// A signature, read.
pub(crate) struct Call {
    pub(crate) parameters: Vec<Parameter>,
    pub(crate) returns: Returns,
    /// It returns a `Result`, whose error is the task's.
    pub(crate) fails: bool,
}

impl Call {
    pub(crate) fn read(signature: &Signature, settings: &Settings) -> syn::Result<Call> {
        let refuse = |what: &dyn quote::ToTokens, why: &str| Err(syn::Error::new_spanned(what, why));
        if let Some(asynchronous) = &signature.asyncness {
            return refuse(asynchronous, "remote functions are plain ones: block on the future inside");
        }
        if !signature.generics.params.is_empty() {
            return refuse(
                &signature.generics,
                "a remote function is found by its name, so it cannot be generic",
            );
        }
        let mut parameters = Vec::new();
        for input in &signature.inputs {
            let FnArg::Typed(input) = input else { continue };
            let Pat::Ident(name) = &*input.pat else {
                return refuse(&input.pat, "the parameters of a remote function have plain names");
            };
            if let Type::Reference(_) | Type::ImplTrait(_) = &*input.ty {
                return refuse(
                    &input.ty,
                    "arguments come from another process: take them by value (String for &str, Vec<T> for &[T])",
                );
            }
            parameters.push(Parameter { name: name.ident.clone(), kind: (*input.ty).clone() });
        }
        let returned = match &signature.output {
            ReturnType::Default => syn::parse_quote!(()),
            ReturnType::Type(_, kind) => (**kind).clone(),
        };
        let (value, fails) = match of_result(&returned) {
            Some(value) => (value, true),
            None => (returned, false),
        };
        let returns = match (&settings.num_returns, &value) {
            (Some(count), Type::Tuple(tuple)) => {
                if count.base10_parse::<usize>()? != tuple.elems.len() {
                    let has = tuple.elems.len();
                    return refuse(
                        count,
                        &format!("num_returns = {count}, and the tuple that it returns has {has}"),
                    );
                }
                Returns::Many(tuple.elems.iter().cloned().collect())
            }
            (Some(count), _) => return refuse(count, "num_returns is for functions that return a tuple"),
            (None, _) => match of_iterator(&value) {
                Some(item) => Returns::Stream(item),
                None => Returns::One(value),
            },
        };
        Ok(Call { parameters, returns, fails })
    }

    /// `x: impl Into<Arg<i64>>, …`
    pub(crate) fn accepted(&self) -> TokenStream {
        let each = self.parameters.iter().map(
            |Parameter { name, kind }| quote!(#name: impl ::core::convert::Into<::concurrent_ml::Arg<#kind>>),
        );
        quote!(#(#each),*)
    }

    /// Puts the arguments into `arguments`.
    pub(crate) fn pushes(&self) -> TokenStream {
        let each =
            self.parameters.iter().map(|Parameter { name, kind }| quote!(arguments.push::<#kind>(#name);));
        quote!(#(#each)*)
    }

    pub(crate) fn names(&self) -> TokenStream {
        let each = self.parameters.iter().map(|parameter| &parameter.name);
        quote!(#(#each),*)
    }

    /// What a call gives back.
    pub(crate) fn output(&self) -> TokenStream {
        match &self.returns {
            Returns::One(kind) => quote!(::concurrent_ml::ObjectRef<#kind>),
            Returns::Many(kinds) => quote!((#(::concurrent_ml::ObjectRef<#kinds>),*)),
            Returns::Stream(item) => quote!(::concurrent_ml::Stream<#item>),
        }
    }

    /// The same, made of `results`.
    pub(crate) fn gives(&self) -> TokenStream {
        match &self.returns {
            Returns::One(_) => quote!(results.one()),
            Returns::Many(kinds) => {
                let each = kinds.iter().map(|_| quote!(results.one()));
                quote!((#(#each),*))
            }
            Returns::Stream(_) => quote!(results.stream()),
        }
    }

    pub(crate) fn num_returns(&self) -> u32 {
        match &self.returns {
            Returns::Many(kinds) => kinds.len() as u32,
            Returns::One(_) | Returns::Stream(_) => 1,
        }
    }

    pub(crate) fn streams(&self) -> bool {
        matches!(self.returns, Returns::Stream(_))
    }

    /// Takes the arguments out of `execution`.
    pub(crate) fn takes(&self) -> TokenStream {
        let each = self.parameters.iter().map(|Parameter { name, kind }| {
            let shown = name.to_string();
            quote!(let #name: #kind = execution.argument(#shown)?;)
        });
        quote!(#(#each)*)
    }

    /// Gives `returned`, of the user's code, to `execution`.
    pub(crate) fn finishes(&self) -> TokenStream {
        let unwrapped = if self.fails {
            quote!(let returned = returned.map_err(|error| ::concurrent_ml::__private::raised(&error))?;)
        } else {
            TokenStream::new()
        };
        let given = match &self.returns {
            Returns::One(_) => quote!(execution.finish(&returned)),
            Returns::Many(kinds) => {
                let index = (0..kinds.len()).map(syn::Index::from);
                quote!({ #(execution.finish(&returned.#index)?;)* ::core::result::Result::Ok(()) })
            }
            Returns::Stream(_) => quote!(execution.drain(returned)),
        };
        quote!(#unwrapped #given)
    }
}

/// `T` of `Result<T, E>`, whatever path it has.
pub(crate) fn of_result(kind: &Type) -> Option<Type> {
    let Type::Path(path) = kind else { return None };
    let last = path.path.segments.last().filter(|segment| segment.ident == "Result")?;
    let PathArguments::AngleBracketed(arguments) = &last.arguments else { return None };
    arguments.args.iter().find_map(|argument| match argument {
        GenericArgument::Type(kind) => Some(kind.clone()),
        _ => None,
    })
}

/// `T` of `impl Iterator<Item = T>`.
fn of_iterator(kind: &Type) -> Option<Type> {
    let Type::ImplTrait(made) = kind else { return None };
    made.bounds.iter().find_map(|bound| {
        let TypeParamBound::Trait(bound) = bound else { return None };
        let last = bound.path.segments.last().filter(|segment| segment.ident == "Iterator")?;
        let PathArguments::AngleBracketed(arguments) = &last.arguments else { return None };
        arguments.args.iter().find_map(|argument| match argument {
            GenericArgument::AssocType(item) if item.ident == "Item" => Some(item.ty.clone()),
            _ => None,
        })
    })
}

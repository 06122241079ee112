//! `#[remote] impl`: actors of a type.

use proc_macro2::{Ident, TokenStream};
use quote::{format_ident, quote};
use syn::{FnArg, ImplItem, ImplItemFn, ItemImpl, Type, Visibility};

use crate::signature::{Call, Returns, Settings, of_result};

pub(crate) fn expand(settings: &Settings, item: ItemImpl) -> syn::Result<TokenStream> {
    let name = type_name(&item)?;
    let shown = name.to_string();
    let (handle, with) = (format_ident!("{name}Actor"), format_ident!("{name}ActorOptions"));
    let functions = || {
        item.items.iter().filter_map(|item| match item {
            ImplItem::Fn(function) => Some(function),
            _ => None,
        })
    };
    let none = Settings { num_returns: None, options: TokenStream::new() };
    let maker = functions().find(|function| function.sig.ident == "new").ok_or_else(|| {
        syn::Error::new_spanned(&item.self_ty, "actors are made by `new`: the block has none")
    })?;
    let mut signature = maker.sig.clone();
    // What it makes stays with the actor.
    let fails = match &signature.output {
        syn::ReturnType::Type(_, kind) => of_result(kind).is_some(),
        syn::ReturnType::Default => false,
    };
    signature.output = syn::ReturnType::Default;
    let make = Call::read(&signature, &none)?;
    let (make_accepted, make_pushes, make_takes, make_names) =
        (make.accepted(), make.pushes(), make.takes(), make.names());
    let made = if fails {
        quote!(let made = made.map_err(|error| ::concurrent_ml::__private::raised(&error))?;)
    } else {
        TokenStream::new()
    };
    let (mut methods, mut arms) = (Vec::new(), Vec::new());
    for function in functions().filter(|function| takes_self(function)) {
        let call = Call::read(&function.sig, &none)?;
        methods.push(method(function, &call));
        arms.push(arm(name, function, &call));
    }
    let options = &settings.options;
    let about = format!(
        "A handle on an actor whose state is a `{shown}`: its methods start calls. The actor ends when the last handle goes, unless it is detached."
    );
    Ok(quote! {
        #item

        #[doc = #about]
        #[derive(Clone, Debug, ::concurrent_ml::__private::serde::Serialize, ::concurrent_ml::__private::serde::Deserialize)]
        #[serde(crate = "::concurrent_ml::__private::serde", transparent)]
        pub struct #handle(::concurrent_ml::Actor);

        #[doc(hidden)]
        pub struct #with(::concurrent_ml::Options);

        const _: () = {
            static CLASS: ::concurrent_ml::__private::RemoteClass = ::concurrent_ml::__private::RemoteClass::new(
                #shown,
                ::core::concat!(::core::module_path!(), "::", #shown),
                || ::concurrent_ml::Options::new()#options,
            );

            #[allow(dead_code, reason = "users choose")]
            impl #name {
                /// Makes an actor. What goes wrong in `new`, calls of its methods tell.
                pub fn remote(#make_accepted) -> #handle {
                    #handle(CLASS.make(CLASS.options(), |arguments| { #make_pushes }))
                }

                /// Actors with other options than were declared.
                pub fn options(
                    change: impl ::core::ops::FnOnce(::concurrent_ml::Options) -> ::concurrent_ml::Options,
                ) -> #with {
                    #with(change(CLASS.options()))
                }

                /// The actor of this name.
                ///
                /// # Errors
                /// If there is none, or it is of another type.
                pub fn named(name: &str) -> ::concurrent_ml::Result<#handle> {
                    CLASS.named(name).map(#handle)
                }
            }

            #[allow(dead_code, reason = "users choose")]
            impl #with {
                /// Makes an actor. What goes wrong in `new`, calls of its methods tell.
                #[allow(clippy::needless_pass_by_value, reason = "options are for one")]
                pub fn remote(self, #make_accepted) -> #handle {
                    #handle(CLASS.make(self.0, |arguments| { #make_pushes }))
                }
            }

            #[allow(dead_code, reason = "users choose")]
            impl #handle {
                #(#methods)*

                /// Ends the actor, whoever has handles. `restart`: it may be made anew, as its options say.
                ///
                /// # Errors
                /// If the connection is of no use.
                pub fn kill(&self, restart: bool) -> ::concurrent_ml::Result<()> {
                    self.0.kill(restart)
                }

                /// The same actor, without its type.
                pub fn actor(&self) -> &::concurrent_ml::Actor {
                    &self.0
                }
            }

            fn make(
                execution: &mut ::concurrent_ml::__private::Execution<'_>,
            ) -> ::core::result::Result<::std::boxed::Box<dyn ::core::any::Any>, ::concurrent_ml::__private::Fault> {
                #make_takes
                execution.begin()?;
                let made = #name::new(#make_names);
                #made
                ::core::result::Result::Ok(::std::boxed::Box::new(made))
            }

            #[allow(unused_variables, reason = "there may be no methods")]
            fn call(
                actor: &mut dyn ::core::any::Any,
                method: &str,
                execution: &mut ::concurrent_ml::__private::Execution<'_>,
            ) -> ::core::result::Result<(), ::concurrent_ml::__private::Fault> {
                let ::core::option::Option::Some(actor) = actor.downcast_mut::<#name>() else {
                    return ::core::result::Result::Err(::concurrent_ml::__private::another_type(#shown));
                };
                match method {
                    #(#arms)*
                    _ => ::core::result::Result::Err(::concurrent_ml::__private::no_method(#shown, method)),
                }
            }

            ::concurrent_ml::__private::inventory::submit! {
                ::concurrent_ml::__private::ActorEntry {
                    path: ::core::concat!(::core::module_path!(), "::", #shown),
                    make,
                    call,
                }
            }
        };
    })
}

fn type_name(item: &ItemImpl) -> syn::Result<&Ident> {
    if let Some((_, path, _)) = &item.trait_ {
        return Err(syn::Error::new_spanned(
            path,
            "#[remote] goes on the type's own `impl` block, not on a trait's",
        ));
    }
    if !item.generics.params.is_empty() {
        return Err(syn::Error::new_spanned(
            &item.generics,
            "an actor's type is found by its name, so it cannot be generic",
        ));
    }
    let name = match &*item.self_ty {
        Type::Path(path) => path.path.get_ident(),
        _ => None,
    };
    name.ok_or_else(|| {
        syn::Error::new_spanned(&item.self_ty, "the type of an actor is one of this module, by its name")
    })
}

/// Public methods are callable.
fn takes_self(function: &ImplItemFn) -> bool {
    matches!(function.vis, Visibility::Public(_))
        && matches!(function.sig.inputs.first(), Some(FnArg::Receiver(_)))
}

fn method(function: &ImplItemFn, call: &Call) -> TokenStream {
    let docs: Vec<_> = function.attrs.iter().filter(|attribute| attribute.path().is_ident("doc")).collect();
    let about = docs.is_empty().then(|| format!("Calls `{}` of the actor.", function.sig.ident));
    let about = about.map(|about| quote!(#[doc = #about]));
    let (name, shown) = (&function.sig.ident, function.sig.ident.to_string());
    let (accepted, pushes, output, gives) = (call.accepted(), call.pushes(), call.output(), call.gives());
    let (num_returns, streams) = (call.num_returns(), matches!(call.returns, Returns::Stream(_)));
    quote! {
        #about
        #(#docs)*
        pub fn #name(&self, #accepted) -> #output {
            #[allow(unused_mut, unused_variables, reason = "it depends on what is called")]
            let mut results = self.0.call_with(#shown, #num_returns, #streams, |arguments| { #pushes });
            #gives
        }
    }
}

fn arm(kind: &Ident, function: &ImplItemFn, call: &Call) -> TokenStream {
    let (name, shown) = (&function.sig.ident, function.sig.ident.to_string());
    let (takes, names, finishes) = (call.takes(), call.names(), call.finishes());
    quote! {
        #shown => {
            #takes
            execution.begin()?;
            let returned = #kind::#name(actor, #names);
            #finishes
        }
    }
}

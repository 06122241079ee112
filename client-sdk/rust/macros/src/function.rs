//! `#[remote] fn`.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::{Attribute, ItemFn, ReturnType};

use crate::signature::{Call, Settings};

pub(crate) fn expand(settings: &Settings, item: ItemFn) -> syn::Result<TokenStream> {
    let call = Call::read(&item.sig, settings)?;
    let ItemFn { attrs, vis, sig, block } = &item;
    let name = &sig.ident;
    let shown = name.to_string();
    let (here, with) = (format_ident!("{name}_here"), format_ident!("{name}_with_options"));
    let (docs, others): (Vec<&Attribute>, Vec<&Attribute>) =
        attrs.iter().partition(|attribute| attribute.path().is_ident("doc"));
    let body = {
        let mut body = sig.clone();
        body.ident = here.clone();
        // By its name in backtraces.
        quote!(#(#others)* #[inline(never)] #body #block)
    };
    let (accepted, pushes, output, gives) = (call.accepted(), call.pushes(), call.output(), call.gives());
    let (takes, names, finishes) = (call.takes(), call.names(), call.finishes());
    let (num_returns, streams, options) = (call.num_returns(), call.streams(), &settings.options);

    // Called like a function, it runs here.
    let plain = if streams {
        TokenStream::new()
    } else {
        let kinds = call.parameters.iter().map(|parameter| &parameter.kind);
        let returned = match &sig.output {
            ReturnType::Default => quote!(()),
            ReturnType::Type(_, kind) => quote!(#kind),
        };
        quote! {
            impl ::core::ops::Deref for #name {
                type Target = fn(#(#kinds),*) -> #returned;
                fn deref(&self) -> &Self::Target {
                    static HERE: <#name as ::core::ops::Deref>::Target = #here;
                    &HERE
                }
            }
        }
    };
    Ok(quote! {
        #(#docs)*
        #[allow(non_camel_case_types, reason = "it is called like the function that it was")]
        #[derive(Clone, Copy, Debug)]
        #vis struct #name;

        #[doc(hidden)]
        #[allow(non_camel_case_types, reason = "named after a function")]
        #[derive(Clone)]
        #vis struct #with(::concurrent_ml::Result<::concurrent_ml::__private::Callable>);

        const _: () = {
            #body

            static FUNCTION: ::concurrent_ml::__private::RemoteFunction = ::concurrent_ml::__private::RemoteFunction::new(
                #shown,
                ::core::concat!(::core::module_path!(), "::", #shown),
                #num_returns,
                #streams,
                || ::concurrent_ml::Options::new()#options,
            );

            #[allow(dead_code, reason = "users choose")]
            impl #name {
                /// Starts a call on the cluster. Each argument is a value, or the ref of one.
                pub fn remote(&self, #accepted) -> #output {
                    #[allow(unused_mut, unused_variables, reason = "it depends on what is called")]
                    let mut results = ::concurrent_ml::__private::call(FUNCTION.callable(), |arguments| { #pushes });
                    #gives
                }

                /// The same function with other options than it was declared with.
                pub fn options(
                    &self,
                    change: impl ::core::ops::FnOnce(::concurrent_ml::Options) -> ::concurrent_ml::Options,
                ) -> #with {
                    #with(FUNCTION.changed(change))
                }
            }

            #[allow(dead_code, reason = "users choose")]
            impl #with {
                /// Starts a call on the cluster. Each argument is a value, or the ref of one.
                pub fn remote(&self, #accepted) -> #output {
                    #[allow(unused_mut, unused_variables, reason = "it depends on what is called")]
                    let mut results = ::concurrent_ml::__private::call(self.0.clone(), |arguments| { #pushes });
                    #gives
                }
            }

            #plain

            fn run(
                execution: &mut ::concurrent_ml::__private::Execution<'_>,
            ) -> ::core::result::Result<(), ::concurrent_ml::__private::Fault> {
                #takes
                execution.begin()?;
                let returned = #here(#names);
                #finishes
            }

            ::concurrent_ml::__private::inventory::submit! {
                ::concurrent_ml::__private::FunctionEntry {
                    path: ::core::concat!(::core::module_path!(), "::", #shown),
                    run,
                }
            }
        };
    })
}

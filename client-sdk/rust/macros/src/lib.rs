//! `#[remote]`, the attribute of the crate `concurrent-ml`. See there.

mod actor;
mod function;
mod signature;

use proc_macro::TokenStream;
use syn::{Item, parse_macro_input};

/// Makes a function, or the methods of a type, callable on the cluster.
#[proc_macro_attribute]
pub fn remote(attribute: TokenStream, item: TokenStream) -> TokenStream {
    let settings = parse_macro_input!(attribute as signature::Settings);
    let made = match parse_macro_input!(item as Item) {
        Item::Fn(item) => function::expand(&settings, item),
        Item::Impl(item) => actor::expand(&settings, item),
        other => Err(syn::Error::new_spanned(
            other,
            "#[remote] goes on a function, or on the `impl` block of a type of which actors are made",
        )),
    };
    made.unwrap_or_else(syn::Error::into_compile_error).into()
}

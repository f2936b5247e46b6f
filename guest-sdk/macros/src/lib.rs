//! The attribute `#[wasmcluster_guest::main]`. It checks the shape of the handler and adds the component's export;
//! everything the export does lives in `wasmcluster_guest::__private`.

use proc_macro::TokenStream;
use proc_macro2::TokenStream as TokenStream2;
use quote::quote;
use syn::{Error, FnArg, ItemFn, Result};

/// Makes a `cdylib` crate a component that answers HTTP requests with the function below: it exports
/// `wasi:http/incoming-handler` of WASI 0.2.
///
/// The function is `async`, takes the request and returns whatever implements `IntoResponse`. There is one per crate.
#[proc_macro_attribute]
pub fn main(attribute: TokenStream, item: TokenStream) -> TokenStream {
    expand(attribute.into(), item.into()).unwrap_or_else(Error::into_compile_error).into()
}

fn expand(attribute: TokenStream2, item: TokenStream2) -> Result<TokenStream2> {
    if !attribute.is_empty() {
        return Err(Error::new_spanned(attribute, "`#[wasmcluster_guest::main]` takes no arguments"));
    }
    let handler: ItemFn = syn::parse2(item)?;
    check(&handler)?;
    let name = &handler.sig.ident;
    Ok(quote! {
        #handler

        const _: () = ::wasmcluster_guest::__private::assert_handler(&#name);

        #[cfg(target_arch = "wasm32")]
        const _: () = {
            struct Component;

            impl ::wasmcluster_guest::__private::Guest for Component {
                fn handle(
                    request: ::wasmcluster_guest::__private::IncomingRequest,
                    response: ::wasmcluster_guest::__private::ResponseOutparam,
                ) {
                    ::wasmcluster_guest::__private::run(request, response, #name);
                }
            }

            ::wasmcluster_guest::__private::export!(Component);
        };
    })
}

/// Refuses what the export could not call, with a message at the place that is wrong.
fn check(handler: &ItemFn) -> Result<()> {
    let signature = &handler.sig;
    if signature.asyncness.is_none() {
        return Err(Error::new_spanned(signature.fn_token, "the handler must be `async`"));
    }
    if !signature.generics.params.is_empty() || signature.generics.where_clause.is_some() {
        return Err(Error::new_spanned(&signature.generics, "the handler cannot be generic"));
    }
    match signature.inputs.iter().collect::<Vec<_>>()[..] {
        [FnArg::Typed(_)] => Ok(()),
        [FnArg::Receiver(receiver)] => Err(Error::new_spanned(receiver, "the handler is a function, not a method")),
        _ => Err(Error::new_spanned(&signature.ident, "the handler takes one argument, the request")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expand(attribute: &str, item: &str) -> Result<String> {
        let [attribute, item] = [attribute, item].map(|source| source.parse().expect("made of Rust's tokens"));
        super::expand(attribute, item).map(|expanded| expanded.to_string())
    }

    #[track_caller]
    fn refused(attribute: &str, item: &str, expected: &str) {
        assert_eq!(expand(attribute, item).expect_err("must not expand").to_string(), expected);
    }

    #[test]
    fn a_handler_keeps_its_body_and_gains_an_export() {
        let expanded = expand("", r#"async fn handle(_: Request) -> &'static str { "hi" }"#).expect("expands");
        assert!(expanded.starts_with("async fn handle"));
        assert!(expanded.contains("export !"));
    }

    #[test]
    fn other_shapes_are_refused() {
        let one_argument = "the handler takes one argument, the request";
        refused("", "fn handle(_: Request) -> Response {}", "the handler must be `async`");
        refused("", "async fn handle() -> Response {}", one_argument);
        refused("", "async fn handle(a: A, b: B) -> Response {}", one_argument);
        refused("", "async fn handle(&self) -> Response {}", "the handler is a function, not a method");
        refused("", "async fn handle<T>(_: T) -> Response {}", "the handler cannot be generic");
    }

    #[test]
    fn arguments_of_the_attribute_are_refused() {
        let expected = "`#[wasmcluster_guest::main]` takes no arguments";
        refused("threads = 2", "async fn handle(_: Request) -> Response {}", expected);
    }
}

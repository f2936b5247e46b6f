//! The attribute `#[wasmcluster_guest::main]`. It checks the shape of the handler and adds the component's export;
//! everything the export does lives in `wasmcluster_guest::__private`.

use proc_macro::TokenStream;
use proc_macro2::TokenStream as TokenStream2;
use quote::{quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{Error, FnArg, ItemFn, PatType, Result, ReturnType, Type};

/// Makes a `cdylib` crate a component that answers HTTP requests with the function below. There is one per crate, of one
/// of two kinds:
///
/// - A handler: it is `async`, takes the request and returns whatever implements `IntoResponse`.
/// - With the feature `axum`, a function without arguments that returns an `axum::Router`. It is called once for each
///   instance of the component, when its first request comes.
#[proc_macro_attribute]
pub fn main(attribute: TokenStream, item: TokenStream) -> TokenStream {
    let item = TokenStream2::from(item);
    let expanded = expand(attribute.into(), item.clone()).unwrap_or_else(|error| {
        // With what it stands on, or everything that this uses would count as unused.
        let error = error.into_compile_error();
        quote! { #error #item }
    });
    expanded.into()
}

fn expand(attribute: TokenStream2, item: TokenStream2) -> Result<TokenStream2> {
    if !attribute.is_empty() {
        return Err(Error::new_spanned(attribute, "`#[wasmcluster_guest::main]` takes no arguments"));
    }
    let function: ItemFn = syn::parse2(item)
        .map_err(|error| Error::new(error.span(), "`#[wasmcluster_guest::main]` stands on a function"))?;
    let name = &function.sig.ident;
    let answer = match kind(&function)? {
        Kind::Handler(argument) => {
            // What does not fit is marked where the handler says it.
            let called = quote_spanned! { argument.span() => #name(request) };
            quote_spanned! { function.sig.output.span() => ::wasmcluster_guest::__private::answer(#called.await) }
        }
        Kind::Application(ty) => {
            let answered = quote_spanned! { ty.span() =>
                ::wasmcluster_guest::__private::Application::answer(application, request)
            };
            quote! {
                {
                    ::std::thread_local! {
                        static APPLICATION: #ty = #name();
                    }
                    let application = APPLICATION.with(::std::clone::Clone::clone);
                    ::wasmcluster_guest::__private::answer(#answered.await)
                }
            }
        }
    };
    Ok(quote! {
        #function

        const _: () = {
            #[cfg(not(target_arch = "wasm32"))]
            #[expect(dead_code, reason = "it is checked on every target, and called in components only")]
            async fn __check(request: ::wasmcluster_guest::Request) {
                let _ = #answer;
            }

            #[cfg(target_arch = "wasm32")]
            ::wasmcluster_guest::__export!(|request| async move { #answer });
        };
    })
}

enum Kind<'a> {
    /// With its argument.
    Handler(&'a PatType),
    /// With the type of the application.
    Application(&'a Type),
}

/// Refuses what cannot be called, with a message at the place that is wrong.
fn kind(function: &ItemFn) -> Result<Kind<'_>> {
    let signature = &function.sig;
    if !signature.generics.params.is_empty() || signature.generics.where_clause.is_some() {
        return Err(Error::new_spanned(&signature.generics, "this function cannot be generic"));
    }
    match (&signature.asyncness, &signature.inputs.iter().collect::<Vec<_>>()[..], &signature.output) {
        (_, [FnArg::Receiver(receiver), ..], _) => {
            Err(Error::new_spanned(receiver, "this is a function on its own, not a method"))
        }
        (Some(_), [FnArg::Typed(argument)], _) => Ok(Kind::Handler(argument)),
        (Some(_), _, _) => Err(Error::new_spanned(&signature.ident, "a handler takes one argument, the request")),
        (None, [], ReturnType::Type(_, ty)) if !matches!(**ty, Type::ImplTrait(_)) => Ok(Kind::Application(ty)),
        (None, [], _) => Err(Error::new_spanned(
            &signature.ident,
            "a function without arguments returns an application, an `axum::Router`",
        )),
        (None, _, _) => Err(Error::new_spanned(signature.fn_token, "a handler must be `async`")),
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
    fn a_function_keeps_its_body_and_gains_an_export() {
        let handler = expand("", r#"async fn handle(_: Request) -> &'static str { "hi" }"#).expect("expands");
        assert!(handler.starts_with("async fn handle"));
        assert!(handler.contains("__export !") && handler.contains("handle (request) . await"));
        let application = expand("", "fn app() -> Router { Router::new() }").expect("expands");
        assert!(application.contains("static APPLICATION : Router = app ()"));
    }

    #[test]
    fn other_shapes_are_refused() {
        let one_argument = "a handler takes one argument, the request";
        let application = "a function without arguments returns an application, an `axum::Router`";
        refused("", "fn handle(_: Request) -> Response {}", "a handler must be `async`");
        refused("", "async fn handle() -> Response {}", one_argument);
        refused("", "async fn handle(a: A, b: B) -> Response {}", one_argument);
        refused("", "async fn handle(&self) -> Response {}", "this is a function on its own, not a method");
        refused("", "async fn handle<T>(_: T) -> Response {}", "this function cannot be generic");
        refused("", "fn app() {}", application);
        refused("", "fn app() -> impl Sized {}", application);
        refused("", "struct App;", "`#[wasmcluster_guest::main]` stands on a function");
    }

    #[test]
    fn arguments_of_the_attribute_are_refused() {
        let expected = "`#[wasmcluster_guest::main]` takes no arguments";
        refused("threads = 2", "async fn handle(_: Request) -> Response {}", expected);
    }
}

//! The attribute `#[wasmcluster_guest::main]`. It checks the shape of the handler and adds the component's export;
//! everything the export does lives in `wasmcluster_guest::__private`.
//!
//! It reads the tokens itself, with the little that it has to know of a function (`function.rs`): `syn` would take longer
//! to compile than the rest of the SDK.

mod function;

use proc_macro::TokenStream;
use proc_macro2::{Span, TokenStream as TokenStream2, TokenTree};
use quote::{ToTokens, quote, quote_spanned};

use function::{Error, Function, Result};

/// Makes a `cdylib` crate a component that answers HTTP requests with the function below. There is one per crate, of one
/// of two kinds:
///
/// - A handler: it is `async`, takes the request and returns whatever implements `IntoResponse`.
/// - With the feature `axum`, a function without arguments that returns an `axum::Router`. It is called once: when the
///   component is compiled, if all that it does can be done there, or else for each instance, when its first request comes.
///
/// `#[wasmcluster_guest::main(init = warm_up)]` has a function of yours called then too: `fn warm_up()`, which fills what
/// requests will need, as a `LazyLock` or a `thread_local!`. Each instance starts from the memory that it leaves. While it
/// runs there is no host: if it asks for the time, the environment, a random number or anything else, or writes anything,
/// then instances start as the component is, and the server says so. It is not called in that case, nor by a server that
/// knows nothing of this: a request must find what it needs without it.
///
/// With `init = false`, nothing is done before the first request, the router's function included.
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
    let init = Init::read(attribute)?;
    let function = Function::read(item.clone()).ok_or_else(|| {
        let first = item.clone().into_iter().take(1).collect();
        Error::new(first, "`#[wasmcluster_guest::main]` belongs on a function")
    })?;
    let name = &function.name;
    let (kept, made, answer) = match kind(&function)? {
        Kind::Handler { argument, output } => {
            // What does not fit is marked where the handler says it.
            let called = quote_spanned! { argument => #name(request) };
            let answer = quote_spanned! { output => ::wasmcluster_guest::__private::answer(#called.await) };
            (TokenStream2::new(), TokenStream2::new(), answer)
        }
        Kind::Application(ty) => {
            let answered = quote_spanned! { first_span(&ty) =>
                ::wasmcluster_guest::__private::Application::answer(application, request)
            };
            let kept = quote! {
                ::std::thread_local! {
                    static APPLICATION: #ty = #name();
                }
            };
            let answer = quote! {
                {
                    let application = APPLICATION.with(::std::clone::Clone::clone);
                    ::wasmcluster_guest::__private::answer(#answered.await)
                }
            };
            (kept, quote! { APPLICATION.with(|_| ()); }, answer)
        }
    };
    let work = match init {
        Init::Never => TokenStream2::new(),
        Init::Usual => made,
        // Whatever it is, it must be a function without arguments that returns nothing.
        Init::Also(path) => {
            let called = quote_spanned! { first_span(&path) => let initialize: fn() = #path; };
            quote! { #called initialize(); #made }
        }
    };
    let initialize = if work.is_empty() { TokenStream2::new() } else { initializer(&work) };
    Ok(quote! {
        #item

        const _: () = {
            #kept

            #initialize

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

/// The export that is called before the first request.
fn initializer(work: &TokenStream2) -> TokenStream2 {
    quote! {
        #[cfg_attr(not(target_arch = "wasm32"), expect(dead_code, reason = "it is called in components only"))]
        fn __initialize() {
            #work
        }

        #[cfg(target_arch = "wasm32")]
        const _: () = {
            struct Initializer;

            impl ::wasmcluster_guest::__private::init::Guest for Initializer {
                fn wizer_initialize() {
                    __initialize();
                }
            }

            ::wasmcluster_guest::__private::init::export!(Initializer);
        };
    }
}

/// What is done before the first request.
enum Init {
    /// What makes the application.
    Usual,
    Never,
    /// What this function does, too.
    Also(TokenStream2),
}

impl Init {
    fn read(attribute: TokenStream2) -> Result<Self> {
        let tokens: Vec<TokenTree> = attribute.clone().into_iter().collect();
        match &tokens[..] {
            [] => Ok(Self::Usual),
            [name, TokenTree::Punct(mark), value @ ..]
                if function::is_word(name, "init") && mark.as_char() == '=' && !value.is_empty() =>
            {
                match value {
                    [value] if function::is_word(value, "false") => Ok(Self::Never),
                    value => Ok(Self::Also(value.iter().cloned().collect())),
                }
            }
            _ => Err(Error::new(
                attribute,
                "`#[wasmcluster_guest::main]` takes `init = FUNCTION`, what to do before the first request, or `init = \
                 false`",
            )),
        }
    }
}

enum Kind {
    /// Where its argument and its output are.
    Handler { argument: Span, output: Span },
    /// With the type of the application.
    Application(TokenStream2),
}

/// Refuses what cannot be called, with a message at the place that is wrong.
fn kind(function: &Function) -> Result<Kind> {
    let Function { name, keyword, is_async, generics, arguments, output } = function;
    if !generics.is_empty() {
        return Err(Error::new(generics.clone(), "this function cannot be generic"));
    }
    match (is_async, &arguments[..]) {
        (_, [first, ..]) if function::is_receiver(first) => {
            Err(Error::new(first.clone(), "this must be a free function, not a method"))
        }
        (true, [argument]) => Ok(Kind::Handler { argument: first_span(argument), output: first_span(output) }),
        (true, _) => Err(Error::new(name.to_token_stream(), "a handler takes one argument, the request")),
        (false, []) => match function::named_type(output) {
            Some(ty) => Ok(Kind::Application(ty)),
            None => Err(Error::new(
                name.to_token_stream(),
                "a function without arguments returns an application, an `axum::Router`",
            )),
        },
        (false, _) => Err(Error::new(keyword.to_token_stream(), "a handler must be `async`")),
    }
}

fn first_span(tokens: &TokenStream2) -> Span {
    tokens.clone().into_iter().next().map_or_else(Span::call_site, |token| token.span())
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
        refused("", "async fn handle(&self) -> Response {}", "this must be a free function, not a method");
        refused("", "async fn handle<T>(_: T) -> Response {}", "this function cannot be generic");
        refused("", "fn app() {}", application);
        refused("", "fn app() -> impl Sized {}", application);
        refused("", "async fn handle(self: Box<Self>) -> Response {}", "this must be a free function, not a method");
        refused("", "async fn handle(_: A) -> B where A: C {}", "this function cannot be generic");
        refused("", "fn app() -> Router;", "`#[wasmcluster_guest::main]` belongs on a function");
        refused("", "impl App { fn app() -> Router {} }", "`#[wasmcluster_guest::main]` belongs on a function");
        refused("", "const APP: fn() -> Router = { app };", "`#[wasmcluster_guest::main]` belongs on a function");
        refused("", "struct App;", "`#[wasmcluster_guest::main]` belongs on a function");
    }

    #[test]
    fn whatever_a_function_is_written_with_it_is_one() {
        for handler in [
            "/// Says hi.\n#[inline] pub(crate) async fn handle(request: Request<Body>) -> Result<Response, Error> {}",
            "async fn handle(Parts { a, b }: Parts<A, fn(B, C) -> D, [u8; { 1 + 1 }]>,) -> impl IntoResponse {}",
            "async unsafe extern \"C\" fn handle(mut request: Request) {}",
        ] {
            let handler = expand("", handler).expect("expands");
            assert!(handler.contains("__export !") && handler.contains("handle (request) . await"), "{handler}");
        }
        let application = expand("", "pub fn app() -> axum::Router<()> { Router::new() }").expect("expands");
        assert!(application.contains("static APPLICATION : axum :: Router < () > = app ()"), "{application}");
    }

    #[test]
    fn arguments_of_the_attribute_are_refused() {
        let expected = "`#[wasmcluster_guest::main]` takes `init = FUNCTION`, what to do before the first request, or \
                        `init = false`";
        for attribute in ["threads = 2", "init", "init =", "init(warm_up)", "= false"] {
            refused(attribute, "async fn handle(_: Request) -> Response {}", expected);
        }
    }

    #[test]
    fn what_is_done_before_the_first_request_is_chosen() {
        let (handler, application) =
            ("async fn handle(_: Request) -> Response {}", "fn app() -> Router { Router::new() }");
        let init = |attribute: &str, item: &str| {
            let expanded = expand(attribute, item).expect("expands");
            let (_, body) = expanded.split_once("fn __initialize () {")?;
            Some(body.split_once('}').expect("it ends").0.trim().to_owned())
        };
        let made = "APPLICATION . with (| _ | ()) ;";
        let called = "let initialize : fn () = tables :: fill ; initialize () ;";
        assert_eq!(init("", handler), None);
        assert_eq!(init("", application).as_deref(), Some(made));
        assert_eq!(init("init = tables::fill", handler).as_deref(), Some(called));
        assert_eq!(init("init = tables::fill", application), Some(format!("{called} {made}")));
        assert_eq!(init("init = false", handler), None);
        assert_eq!(init("init = false", application), None);
    }
}

//! The signature of a function, as far as it matters here, and errors that mark a part of it. What is no Rust at all is
//! not noticed: the compiler, which gets the function as it is, says that better.

use std::fmt;

use proc_macro2::{Delimiter, Group, Ident, Span, TokenStream, TokenTree};
use quote::{quote, quote_spanned};

pub(crate) struct Function {
    pub(crate) name: Ident,
    /// The word `fn`.
    pub(crate) keyword: Ident,
    pub(crate) is_async: bool,
    /// Parameters, and what `where` says.
    pub(crate) generics: TokenStream,
    pub(crate) arguments: Vec<TokenStream>,
    /// The arrow and the type.
    pub(crate) output: TokenStream,
}

impl Function {
    /// `None` if the item is no function with a body.
    pub(crate) fn read(item: TokenStream) -> Option<Self> {
        let tokens: Vec<TokenTree> = item.into_iter().collect();
        let (body, signature) = tokens.split_last()?;
        group(body, Delimiter::Brace)?;
        let at = signature.iter().position(|token| is_word(token, "fn"))?;
        let is_async = signature[..at].iter().any(|token| is_word(token, "async"));
        let [TokenTree::Ident(keyword), TokenTree::Ident(name), rest @ ..] = &signature[at..] else { return None };
        // Parameters may have parentheses too, but then they are refused anyway.
        let (at, arguments) =
            rest.iter().enumerate().find_map(|(at, token)| Some((at, group(token, Delimiter::Parenthesis)?)))?;
        let (parameters, output) = (&rest[..at], &rest[at + 1..]);
        let at = output.iter().position(|token| is_word(token, "where")).unwrap_or(output.len());
        let (output, bounds) = output.split_at(at);
        Some(Self {
            name: name.clone(),
            keyword: keyword.clone(),
            is_async,
            generics: parameters.iter().chain(bounds).cloned().collect(),
            arguments: split_at_commas(arguments.stream()),
            output: output.iter().cloned().collect(),
        })
    }
}

/// What is between the commas that are in no angle brackets; those in other brackets are in groups of their own.
fn split_at_commas(tokens: TokenStream) -> Vec<TokenStream> {
    let (mut parts, mut part) = (Vec::new(), TokenStream::new());
    let (mut depth, mut is_arrow) = (0_u32, false);
    for token in tokens {
        let mark = if let TokenTree::Punct(mark) = &token { mark.as_char() } else { ' ' };
        match mark {
            '<' => depth += 1,
            // That of `->` closes nothing.
            '>' if !is_arrow => depth = depth.saturating_sub(1),
            _ => {}
        }
        is_arrow = mark == '-';
        if mark == ',' && depth == 0 {
            parts.push(std::mem::take(&mut part));
        } else {
            part.extend([token]);
        }
    }
    parts.push(part);
    parts.retain(|part| !part.is_empty());
    parts
}

/// Whether this argument is `self`, in one of its forms.
pub(crate) fn is_receiver(argument: &TokenStream) -> bool {
    let is_colon = |token: &TokenTree| matches!(token, TokenTree::Punct(mark) if mark.as_char() == ':');
    argument.clone().into_iter().take_while(|token| !is_colon(token)).any(|token| is_word(&token, "self"))
}

/// The type of an output, if there is one that has a name.
pub(crate) fn named_type(output: &TokenStream) -> Option<TokenStream> {
    // The arrow is two tokens.
    let ty = output.clone().into_iter().skip(2);
    let first = ty.clone().next()?;
    (!is_word(&first, "impl")).then(|| ty.collect())
}

pub(crate) fn is_word(token: &TokenTree, word: &str) -> bool {
    matches!(token, TokenTree::Ident(ident) if ident == word)
}

fn group(token: &TokenTree, delimiter: Delimiter) -> Option<&Group> {
    if let TokenTree::Group(group) = token { Some(group).filter(|group| group.delimiter() == delimiter) } else { None }
}

pub(crate) type Result<T> = std::result::Result<T, Error>;

#[derive(Debug)]
pub(crate) struct Error {
    message: &'static str,
    first: Span,
    last: Span,
}

impl Error {
    /// At these tokens.
    pub(crate) fn new(tokens: TokenStream, message: &'static str) -> Self {
        let mut spans = tokens.into_iter().map(|token| token.span());
        let first = spans.next().unwrap_or_else(Span::call_site);
        Self { message, first, last: spans.last().unwrap_or(first) }
    }

    /// An invocation that begins where the tokens do and ends where they do: this is what the compiler marks.
    pub(crate) fn into_compile_error(self) -> TokenStream {
        let Self { message, first, last } = self;
        let name = quote_spanned! { first => ::core::compile_error! };
        let message = quote_spanned! { last => { #message } };
        quote! { #name #message }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message)
    }
}

//! nginx in the benchmark, with one worker process.

use std::net::SocketAddr;
use std::process::Command;

use anyhow::Result;

use crate::contenders::{CONTENT_TYPE_OF_HELLO, HELLO};
use crate::process::Scratch;
use crate::tls::certificate;

/// The same answer and the same certificate as the others, with tickets.
pub(crate) fn tls(scratch: &Scratch, port: u16) -> Result<Command> {
    let [certificate, key] = certificate()?.map(|file| file.canonicalize());
    let server = format!(
        "server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {certificate}; ssl_certificate_key {key};\n\
         ssl_session_tickets on; ssl_protocols TLSv1.2 TLSv1.3; default_type \"{CONTENT_TYPE_OF_HELLO}\";\n\
         location / {{ return 200 \"{hello}\"; }} }}\n",
        certificate = certificate?.display(),
        key = key?.display(),
        hello = HELLO.replace('\n', "\\n"),
    );
    command(scratch, port, "https", &server)
}

/// Passes everything on, over connections that are kept.
pub(crate) fn proxy(scratch: &Scratch, port: u16, upstream: SocketAddr) -> Result<Command> {
    let server = format!(
        "upstream behind {{ server {upstream}; keepalive 64; keepalive_requests 1000000; }}\n\
         server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://behind; proxy_http_version 1.1;\n\
         proxy_set_header Connection \"\"; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; }} }}\n"
    );
    command(scratch, port, "http", &server)
}

fn command(scratch: &Scratch, port: u16, scheme: &str, server: &str) -> Result<Command> {
    let path = scratch.path("nginx.conf");
    let folder = scratch.path("");
    let text = format!(
        "daemon off; master_process on; worker_processes 1; pid {folder}/nginx.pid; error_log stderr;\n\
         events {{ worker_connections 1024; }}\n\
         http {{ access_log off; keepalive_requests 1000000; server_tokens off;\n\
         client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;\n\
         fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;\n\
         {server} }}\n",
        folder = folder.display(),
    );
    std::fs::write(&path, text)?;
    let mut command = Command::new("sh");
    // It says nothing when it listens; what waits for it finds out by itself.
    command.arg("-c").arg(format!("echo Serving HTTP on {scheme}://127.0.0.1:{port}/; exec nginx -c \"$1\""));
    command.arg("sh").arg(path);
    Ok(command)
}

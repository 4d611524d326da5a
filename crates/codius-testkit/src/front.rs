//! The web server that an operator puts in front of hosts: a real nginx that ends TLS, with certificates
//! of an authority of its own.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use tempfile::TempDir;

use crate::{
    background::{Background, Listen, output_of},
    namespace::NetworkNamespace,
};

const OPENSSL: &str = "openssl";
const START_TIMEOUT: Duration = Duration::from_secs(20);
const START_POLL: Duration = Duration::from_millis(20);
/// Where browsers and tools look for `https://`.
const PORT: u16 = 443;

/// A running nginx. Dropping it ends it.
#[derive(Debug)]
pub struct Front {
    place: TempDir,
    program: Background,
}

impl Front {
    /// Serves each name, and every name below it, from the host that listens at its address. Others in
    /// `network` find these names at `address`.
    pub fn start(
        network: &NetworkNamespace,
        address: IpAddr,
        hosts: &[(&str, SocketAddr)],
    ) -> Result<Self> {
        let place = tempfile::Builder::new().prefix("codius-front-").tempdir()?;
        let names: Vec<&str> = hosts.iter().map(|(name, _)| *name).collect();
        network.name_hosts(address, &names)?;
        certify(place.path(), &names)?;
        let configuration = place.path().join("nginx.conf");
        fs::write(&configuration, configure(place.path(), address, hosts))?;
        let mut nginx = network.command("nginx");
        nginx
            .arg("-p")
            .arg(place.path())
            .arg("-c")
            .arg(&configuration);
        let program = Background::start(&nginx, Listen::Output)?;
        let front = Self { place, program };
        // It writes this file when it listens.
        let deadline = Instant::now() + START_TIMEOUT;
        while !front.place.path().join("pid").exists() {
            ensure!(
                Instant::now() < deadline,
                "nginx did not start; install the Debian package nginx-light:\n{}",
                front.program.errors()
            );
            std::thread::sleep(START_POLL);
        }
        Ok(front)
    }

    /// The certificate of the authority, for `NODE_EXTRA_CA_CERTS` and the like.
    pub fn authority(&self) -> PathBuf {
        self.place.path().join("authority.pem")
    }

    /// What was asked for so far, a line for each request: `NAME METHOD PATH STATUS`.
    pub fn requests(&self) -> String {
        fs::read_to_string(self.place.path().join("access.log")).unwrap_or_default()
    }
}

/// One authority, and one certificate for all names.
fn certify(place: &Path, names: &[&str]) -> Result<()> {
    let request = |key: &str, certificate: &str, subject: &str, more: &[&str]| {
        let mut openssl = Command::new(OPENSSL);
        openssl
            .current_dir(place)
            .args(["req", "-x509", "-nodes", "-days", "2"])
            .args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"])
            .args(["-keyout", key, "-out", certificate, "-subj", subject])
            .args(more);
        output_of(&mut openssl, OPENSSL).map(drop)
    };
    request("authority.key", "authority.pem", "/CN=test authority", &[])?;
    let alternatives: Vec<String> = names
        .iter()
        .map(|name| format!("DNS:{name},DNS:*.{name}"))
        .collect();
    let alternatives = format!("subjectAltName={}", alternatives.join(","));
    let of_authority = ["-CA", "authority.pem", "-CAkey", "authority.key"];
    let leaf = [
        "-addext",
        &alternatives,
        "-addext",
        "basicConstraints=CA:false",
    ];
    let more = [of_authority.as_slice(), leaf.as_slice()].concat();
    request("front.key", "front.pem", "/CN=front", &more)
}

fn configure(place: &Path, address: IpAddr, hosts: &[(&str, SocketAddr)]) -> String {
    let servers: String = hosts
        .iter()
        .map(|(name, upstream)| {
            format!(
                "server {{ listen {address}:{PORT} ssl; server_name .{name};\n\
                 location / {{ proxy_pass http://{upstream}; proxy_http_version 1.1; proxy_set_header Host $host;\n\
                 proxy_buffering off; proxy_read_timeout 10m; }} }}\n"
            )
        })
        .collect();
    let place = place.display();
    format!(
        "daemon off; master_process off; user root; pid {place}/pid; error_log stderr;\n\
         events {{ }}\n\
         http {{\n\
         log_format short '$host $request_method $request_uri $status';\n\
         access_log {place}/access.log short;\n\
         client_body_temp_path {place}/body; proxy_temp_path {place}/proxy;\n\
         fastcgi_temp_path {place}/fastcgi; uwsgi_temp_path {place}/uwsgi; scgi_temp_path {place}/scgi;\n\
         server_names_hash_bucket_size 128; client_max_body_size 2m;\n\
         ssl_certificate {place}/front.pem; ssl_certificate_key {place}/front.key;\n\
         {servers}}}\n"
    )
}

//! Who gets in: through the socket file the host's own user and root, through a port who has the token.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use axum::{
    extract::{Request, State},
    http::{HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
    serve::Listener,
};
use ring::digest::{Digest, SHA256, digest};
use tokio::net::{TcpListener, UnixListener, UnixStream, unix};

use crate::http_error::HttpError;

const PRIVATE: u32 = 0o600;
const TOKEN_BYTES: usize = 32;
/// A token of the operator's own choice.
const MAX_TOKEN_BYTES: u64 = 4096;
/// Wait after a connection could not be accepted, when there are no file descriptors left for example.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// A socket file of mode 0600. Who connects is asked for besides, because the mode is set a moment
/// after the file is there.
pub(super) struct OwnersSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl OwnersSocket {
    /// Takes the place of what an earlier process left; the lock of the database says that it is gone.
    pub(super) fn bind(path: &Path) -> Result<Self> {
        match fs::remove_file(path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(error).with_context(|| format!("cannot replace {}", path.display()));
            }
        }
        let listener = UnixListener::bind(path).with_context(|| {
            format!(
                "cannot make the admin socket {} (a path of more than 107 bytes is too long)",
                path.display()
            )
        })?;
        fs::set_permissions(path, fs::Permissions::from_mode(PRIVATE))?;
        let path = path.to_owned();
        Ok(Self { listener, path })
    }
}

impl Listener for OwnersSocket {
    type Io = UnixStream;
    type Addr = unix::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, address) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "admin socket");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let own = rustix::process::geteuid().as_raw();
            match stream.peer_cred() {
                Ok(peer) if peer.uid() == own || peer.uid() == 0 => return (stream, address),
                Ok(peer) => tracing::warn!(uid = peer.uid(), "admin socket: another user"),
                Err(error) => tracing::warn!(%error, "admin socket: nobody knows who"),
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

impl Drop for OwnersSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// What a request on the TCP port has to show. Only its digest is kept and compared, so that the time
/// that takes says nothing about it.
pub(super) struct Token(Digest);

impl Token {
    /// Reads the token, or makes one.
    pub(super) fn keep(path: &Path) -> Result<Self> {
        let shown = path.display();
        let mut new = fs::OpenOptions::new();
        new.write(true).create_new(true).mode(PRIVATE);
        match new.open(path) {
            Ok(mut file) => {
                let token = data_encoding::HEXLOWER.encode(&rand::random::<[u8; TOKEN_BYTES]>());
                io::Write::write_all(&mut file, format!("{token}\n").as_bytes())?;
                file.sync_all()?;
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).with_context(|| format!("cannot make {shown}")),
        }
        let metadata = fs::metadata(path)?;
        let mode = metadata.permissions().mode() & 0o777;
        ensure!(
            mode & 0o077 == 0,
            "{shown} can be read by others (mode {mode:o}); run `chmod 600 {shown}`"
        );
        ensure!(metadata.len() <= MAX_TOKEN_BYTES, "{shown} is no token");
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
        let token = text.trim();
        ensure!(
            !token.is_empty(),
            "{shown} is empty; remove it, and the next start makes a new one"
        );
        Ok(Self(digest(&SHA256, token.as_bytes())))
    }

    fn is(&self, given: &str) -> bool {
        digest(&SHA256, given.as_bytes()).as_ref() == self.0.as_ref()
    }
}

/// Lets requests with the token through (RFC 6750).
pub(super) async fn guard(
    State(token): State<Arc<Token>>,
    request: Request,
    next: Next,
) -> Response {
    let given = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, given)| given.trim());
    if given.is_some_and(|given| token.is(given)) {
        return next.run(request).await;
    }
    HttpError::new(StatusCode::UNAUTHORIZED, "Unauthorized")
        .next("send `Authorization: Bearer` with what is in the file admin.token of the data directory")
        .header(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
        .into_response()
}

/// A port of this machine only.
pub(super) async fn listen(port: u16) -> Result<TcpListener> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}; choose another admin.tcp_port"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_made_once_and_for_its_owner_only() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("admin.token");
        Token::keep(&path)?;
        let mode = fs::metadata(&path)?.permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let made = fs::read_to_string(&path)?;
        let token = Token::keep(&path)?;
        assert_eq!(fs::read_to_string(&path)?, made);
        assert!(token.is(made.trim()));
        assert!(!token.is("") && !token.is(&made[1..]));

        fs::set_permissions(&path, fs::Permissions::from_mode(0o640))?;
        let error = Token::keep(&path).err().context("others can read it")?;
        assert!(error.to_string().contains("chmod 600"), "{error}");
        Ok(())
    }

    /// Even where the files let everyone in. (Makes another user, so it needs root.)
    #[tokio::test]
    async fn another_user_is_not_let_in() -> Result<()> {
        let dir = tempfile::tempdir()?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        let path = dir.path().join("admin.sock");
        let mut socket = OwnersSocket::bind(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
        let connect = "use IO::Socket::UNIX; my $s = IO::Socket::UNIX->new($ARGV[0]) or die $!; \
                       print defined(<$s>) ? 'answered' : 'hung up'";
        let stranger = tokio::process::Command::new("setpriv")
            .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
            .args(["perl", "-e", connect])
            .arg(&path)
            .output();
        tokio::select! {
            _ = socket.accept() => anyhow::bail!("let in"),
            output = stranger => {
                let output = output?;
                let said = String::from_utf8_lossy(&output.stdout).into_owned();
                ensure!(said == "hung up", "{output:?}");
            }
        }
        let (accepted, connected) = tokio::join!(socket.accept(), UnixStream::connect(&path));
        drop((accepted, connected?));
        Ok(())
    }
}

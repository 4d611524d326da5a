//! Every bound of a pull, with its default and the reason for it.

use std::time::Duration;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// What one image may cost this host. Reaching a size or count refuses the image as too large;
/// reaching a wait makes it unavailable for now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageLimits {
    /// Bytes of one manifest or index. The distribution specification asks registries to accept
    /// 4 MiB.
    pub manifest_bytes: u64,
    /// Bytes of the image config; real ones have a few KiB, with a long history some dozen.
    pub config_bytes: u64,
    /// Layers of one image. Docker itself stops at 127.
    pub layers: usize,
    /// Compressed bytes of all layers together.
    pub compressed_bytes: u64,
    /// Uncompressed bytes of all layers together, headers included; bounds the disk used.
    pub uncompressed_bytes: u64,
    /// Bytes of one file.
    pub file_bytes: u64,
    /// Entries of all layers together; also files and directories of the tree that they make.
    pub entries: u64,
    /// Bytes of names, link targets and attributes of all layers together; bounds the memory used.
    pub metadata_bytes: u64,
    /// Uncompressed bytes for each compressed byte of a layer.
    pub ratio: u64,
    /// A layer this small uncompressed is not held to `ratio`.
    pub ratio_free_bytes: u64,
    /// Layers of one image fetched at a time.
    pub parallel_layers: usize,
    /// Images prepared at a time; more wait, at most `queue`.
    pub parallel_images: usize,
    /// Of these, how many have their layers put together and their block image made at a time: that
    /// takes the most memory.
    pub parallel_builds: usize,
    /// References that registries are asked about at a time. Asking is free, so it is bounded.
    pub parallel_resolves: usize,
    /// Redirects followed for one request.
    pub redirects: usize,
    /// How often an interrupted layer is taken up again where it stopped.
    pub resumes: usize,
    /// How long a connection may take to be made.
    pub connect: Duration,
    /// How long the registry may send nothing, or less than `idle_bytes`.
    pub idle: Duration,
    /// What must arrive in every `idle` spent waiting, so that a trickle does not hold a place.
    pub idle_bytes: u64,
    /// How long an image may wait for its turn to be prepared.
    pub queue: Duration,
    /// How long `resolve` may take.
    pub resolve: Duration,
    /// How long fetching all layers may take.
    pub fetch: Duration,
    /// How long making the block image may take. A pull takes no longer than `queue`, `resolve`,
    /// `fetch` and twice `build` together.
    pub build: Duration,
    /// Bytes on disk of all images that are here and of all that is being made. What leases need is
    /// never removed for it.
    pub cache_bytes: u64,
    /// Bytes of the disk that are left free for everything else.
    pub free_bytes: u64,
}

impl Default for ImageLimits {
    fn default() -> Self {
        Self {
            manifest_bytes: 4 * MIB,
            config_bytes: MIB,
            layers: 127,
            compressed_bytes: 2 * GIB,
            uncompressed_bytes: 6 * GIB,
            file_bytes: 4 * GIB,
            entries: 500_000,
            metadata_bytes: 128 * MIB,
            ratio: 100,
            ratio_free_bytes: 64 * MIB,
            parallel_layers: 4,
            parallel_images: 4,
            parallel_builds: 2,
            parallel_resolves: 64,
            redirects: 5,
            resumes: 3,
            connect: Duration::from_secs(10),
            idle: Duration::from_secs(30),
            idle_bytes: 64 << 10,
            queue: Duration::from_secs(5 * 60),
            resolve: Duration::from_secs(30),
            fetch: Duration::from_secs(15 * 60),
            build: Duration::from_secs(5 * 60),
            cache_bytes: 20 * GIB,
            free_bytes: GIB,
        }
    }
}

/// Which registries may be asked, and how.
///
/// Anybody may name a registry in a manifest, so a registry is also a way to make this host send a
/// request. By default only `https` to public addresses is spoken.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegistryConfig {
    /// `HOST` or `HOST:PORT` of registries that are spoken to over plain HTTP, at any address. Also
    /// a token server or a redirect target over plain HTTP must be listed. Loopback is not an
    /// exception.
    pub insecure: Vec<String>,
    /// Allows `https` to registries at private, loopback and link-local addresses.
    pub allow_private_addresses: bool,
}

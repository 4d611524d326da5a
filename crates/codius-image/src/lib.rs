//! OCI images: references, pulls, and one read-only block image each.
//!
//! A pull goes through these modules in this order, and no compressed byte touches the disk:
//!
//! ```text
//! reference   "nginx:1"  →  docker.io / library/nginx / 1
//! registry    HTTP: tokens, redirects, deadlines, digests checked while streaming
//! manifest    index → linux/amd64 manifest → config and layer descriptors
//! layer       one layer's tar, decompressed as it arrives: contents → spool file, names → entries
//!  header, place             what a tar entry says, and which path it means
//! tree        the layers' entries applied in memory: whiteouts, links, replaced directories
//! archive     the tree as one clean tar, contents copied from the spool files
//! block       `sqfstar`, unprivileged, reading that tar from a pipe → one squashfs file
//! pull        all of that for one image, with its deadlines
//! room        the disk that images may take, and which of them go when there is too little
//! shelf       the files: published by rename, put in order after a crash
//! policy      which images the operator runs, and which ones stay
//! store       all images: one job per digest, shared by all who wait for it
//! ```
//!
//! Images are hostile. Nothing is ever unpacked onto this host's file system: a path of a layer is
//! only a key in the tree, so it cannot lead anywhere. Every size, count and wait is in
//! [`ImageLimits`].
//!
//! The store needs the program `sqfstar` (Debian package squashfs-tools).

#![forbid(unsafe_code)]

mod archive;
mod audience;
mod block;
mod digest;
mod fault;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod header;
mod layer;
mod limits;
mod manifest;
mod place;
mod policy;
mod pull;
mod reference;
mod registry;
mod room;
mod shelf;
mod store;
mod tree;

pub use digest::{Digest, InvalidDigest};
pub use limits::{ImageLimits, RegistryConfig};
pub use policy::{ImagePolicy, InvalidPattern, Pattern};
pub use reference::{InvalidReference, Reference};
pub use store::{ImageStore, Leaseholders, OpenError, StoredImage};

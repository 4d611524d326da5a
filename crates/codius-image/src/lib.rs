//! OCI images: references, pulls, and one read-only block image each.

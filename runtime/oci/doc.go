// Package oci turns an image reference into verified module bytes on disk, and
// module bytes into an image in a registry.
//
// The images are ordinary OCI or Docker images FROM scratch whose file system
// holds one core wasm module, which ENTRYPOINT or CMD names; in an index the
// entry for platform wasip1/wasm or wasi/wasm counts. The package knows nothing
// of what the module does: it reads the module's header and no more.
//
// [Store] keeps modules by the digest of their bytes and, beside them, what
// their images say, by the image's digest:
//
//	modules/sha256/<hex>        a module; verified whenever it is read
//	images/sha256/<hex>.json    an Image
//	tmp/                        downloads under way
//
// A pull runs in a goroutine that belongs to the Store and that all callers who
// want the same image wait for. Store.Close ends and joins them.
package oci

// Package oci turns an image reference into verified module bytes on disk, and
// module bytes into an image in a registry.
//
// Two kinds of images are taken. Ordinary OCI or Docker images FROM scratch,
// whose file system holds a core wasm module, which ENTRYPOINT or CMD names, and
// the files that guests may read; in an index the entry for platform wasip1/wasm
// or wasi/wasm counts. And Wasm OCI artifacts, whose one layer is a module. The
// package knows nothing of what a module does: it reads its header and no more.
//
// [Store] keeps modules by the digest of their bytes and, beside them, what
// their images say and hold, by the image's digest:
//
//	modules/sha256/<hex>        a module; verified whenever it is read
//	images/sha256/<hex>.json    an Image
//	roots/sha256/<hex>/         its files, if it has any beside its module
//	tags/sha256/<hex>           the digest that a tag named last
//	tmp/                        downloads under way
//
// Beyond its budget it removes the images that were unused for longest, and none
// that is in use.
//
// A pull runs in a goroutine that belongs to the Store and that all callers who
// want the same image wait for. Store.Close ends and joins them.
package oci

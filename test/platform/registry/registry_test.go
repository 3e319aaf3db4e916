package registry

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// open serves the registry in dir, as a process that was just started would.
func open(t *testing.T, dir string) (host string) {
	t.Helper()
	h, err := New(dir, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://")
}

func reference(t *testing.T, text string) name.Reference {
	t.Helper()
	ref, err := name.ParseReference(text)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func push(t *testing.T, ref string) v1.Hash {
	t.Helper()
	img, err := random.Image(1024, 2)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(reference(t, ref), img); err != nil {
		t.Fatal(err)
	}
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return digest
}

// pull pulls an image, checks it and returns its digest.
func pull(t *testing.T, ref string) v1.Hash {
	t.Helper()
	img, err := remote.Image(reference(t, ref))
	if err != nil {
		t.Fatalf("pull %s: %v", ref, err)
	}
	if err := validate.Image(img); err != nil {
		t.Errorf("pull %s: %v", ref, err)
	}
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return digest
}

func TestImages_survive_a_restart(t *testing.T) {
	dir := t.TempDir()
	want := push(t, open(t, dir)+"/a/b:v1")
	host := open(t, dir)
	if got := pull(t, host+"/a/b:v1"); got != want {
		t.Errorf("by tag = %s, want %s", got, want)
	}
	if got := pull(t, host+"/a/b@"+want.String()); got != want {
		t.Errorf("by digest = %s, want %s", got, want)
	}
}

// A Revision names the digest that its tag had.
func TestAn_image_whose_tag_moved_survives_a_restart(t *testing.T) {
	dir := t.TempDir()
	host := open(t, dir)
	old := push(t, host+"/a:v1")
	moved := push(t, host+"/a:v1")
	host = open(t, dir)
	if got := pull(t, host+"/a@"+old.String()); got != old {
		t.Errorf("the old image = %s, want %s", got, old)
	}
	if got := pull(t, host+"/a:v1"); got != moved {
		t.Errorf("the tag = %s, want %s", got, moved)
	}
}

// The inner registry refuses an index whose images it hasn't.
func TestAn_index_survives_a_restart(t *testing.T) {
	dir := t.TempDir()
	index, err := random.Index(512, 1, 5)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(reference(t, open(t, dir)+"/i:v1"), index); err != nil {
		t.Fatal(err)
	}
	got, err := remote.Index(reference(t, open(t, dir)+"/i:v1"))
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(got); err != nil {
		t.Error(err)
	}
}

func TestA_deleted_manifest_stays_deleted(t *testing.T) {
	dir := t.TempDir()
	host := open(t, dir)
	digest := push(t, host+"/a:v1")
	for _, ref := range []string{host + "/a:v1", host + "/a@" + digest.String()} {
		if err := remote.Delete(reference(t, ref)); err != nil {
			t.Fatal(err)
		}
	}
	host = open(t, dir)
	if _, err := remote.Head(reference(t, host+"/a:v1")); err == nil {
		t.Error("it is there after a restart")
	}
}

func TestA_refused_manifest_is_not_kept(t *testing.T) {
	dir := t.TempDir()
	host := open(t, dir)
	const index = "application/vnd.oci.image.index.v1+json"
	req, err := http.NewRequest(http.MethodPut, "http://"+host+"/v2/a/manifests/v1", strings.NewReader("no index"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", index)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusBadRequest {
		t.Errorf("status = %d, want 400", resp.StatusCode)
	}
	files, err := os.ReadDir(filepath.Join(dir, "manifests"))
	if err != nil || len(files) != 0 {
		t.Errorf("kept %v, %v, want nothing", files, err)
	}
}

func TestA_manifest_is_bounded(t *testing.T) {
	host := open(t, t.TempDir())
	req, err := http.NewRequest(http.MethodPut, "http://"+host+"/v2/a/manifests/v1", strings.NewReader(strings.Repeat(" ", maxManifest+1)))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("status = %d, want 413", resp.StatusCode)
	}
}

func TestNew_names_a_broken_record(t *testing.T) {
	dir := t.TempDir()
	open(t, dir)
	file := filepath.Join(dir, "manifests", "broken.json")
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(dir, io.Discard); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("New = %v, want an error that names %s", err, file)
	}
}

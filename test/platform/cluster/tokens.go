package cluster

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Account is a ServiceAccount.
type Account struct{ Namespace, Name string }

func (a Account) String() string { return a.Namespace + "/" + a.Name }

const (
	tokenLife = time.Hour
	// refreshAfter leaves half of a token's life to whoever reads its file.
	refreshAfter = tokenLife / 2
)

// Tokens keeps the tokens of ServiceAccounts in files.
type Tokens struct {
	Cluster *Cluster
	// Dir is the folder of the files; see [TokenFile].
	Dir      string
	Accounts []Account
	// Report is told of each refresh that didn't work. It is tried again a
	// minute later.
	Report func(error)
}

// TokenFile returns the path of an account's token in dir.
func TokenFile(dir string, a Account) string {
	return filepath.Join(dir, a.Namespace+"."+a.Name)
}

// Write asks for a new token for each account and writes them.
func (t *Tokens) Write(ctx context.Context) error {
	for _, a := range t.Accounts {
		if err := t.write(ctx, a); err != nil {
			return fmt.Errorf("renew the token of account %s: %w", a, err)
		}
	}
	return nil
}

func (t *Tokens) write(ctx context.Context, a Account) error {
	seconds := int64(tokenLife / time.Second)
	req := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds}}
	got, err := t.Cluster.Kube.CoreV1().ServiceAccounts(a.Namespace).CreateToken(ctx, a.Name, req, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	file := TokenFile(t.Dir, a)
	tmp := file + ".tmp"
	if err := os.WriteFile(tmp, []byte(got.Status.Token), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, file)
}

// Run writes new tokens in time, until ctx ends.
func (t *Tokens) Run(ctx context.Context) {
	timer := time.NewTimer(refreshAfter)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		next := refreshAfter
		if err := t.Write(ctx); err != nil {
			t.Report(err)
			next = time.Minute
		}
		timer.Reset(next)
	}
}

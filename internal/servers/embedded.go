package servers

import (
	"context"
	"fmt"
)

const newestEmbedded = "18"

func embeddedPostgres(_ context.Context, version string) (installation, error) {
	return installation{}, fmt.Errorf("embedded postgres %s: %w", version, ErrNotInstalled)
}

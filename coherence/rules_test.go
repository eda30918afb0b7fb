package coherence

import (
	"fmt"
	"testing"

	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
)

// What fills entries by rules asks whether all partitions are worked on by them.
func TestFollowed(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, b *bench) {
		const ofTwo, ofOne = 2 * PartitionStep, 1 * PartitionStep
		leave := func(partition int, first bool, ids ...uint64) {
			t.Helper()
			_, err := b.WriteRules(t.Context(), partition, "test", ids, first)
			must(t, err)
		}
		want := func(want bool, ids ...uint64) {
			t.Helper()
			f, err := b.Followed(t.Context())
			must(t, err)
			if f.All(ids) != want {
				t.Errorf("All(%d) = %v, want %v", ids, !want, want)
			}
			_, f, err = b.ControlFollowed(t.Context(), "product")
			must(t, err)
			if f.All(ids) != want {
				t.Errorf("behind control: All(%d) = %v, want %v", ids, !want, want)
			}
		}
		want(false)
		want(false, 1)
		leave(ofTwo, true, 1, 2)
		want(false, 1) // of the other partition nothing is known
		leave(ofTwo+1, true, 2, 1)
		want(true, 1, 2)
		want(true)
		want(false, 1, 3)
		leave(ofTwo+1, false, 2, 3) // it follows a reload
		want(true, 2)
		want(false, 1)
		want(false, 3)
		leave(ofTwo, false, 2, 3)
		want(true, 2, 3)
		// Text of another version is nothing that this program understands.
		must(t, b.rdb.HSet(t.Context(), b.layout.Control("rules"), ofTwo, "2abcdefgh").Err())
		want(false, 2)
		leave(ofTwo, false, 2, 3)
		want(true, 2)
		// Another transport, by other rules: both maps are there until one is
		// found to be the one that is worked on.
		leave(ofOne, false, 3, 4)
		want(true, 3)
		want(false, 4)
		want(false, 2)
		leave(ofOne, true, 3, 4)
		want(true, 3, 4)
		want(false, 2)
		// The same where nothing but the end of the greater map is known.
		leave(ofTwo+1, true, 5)
		want(false, 5)
	})
}

// It must be possible to strike rules off while memory is full: until then their
// partition does not go on.
func TestWriteRulesUnderOOM(t *testing.T) {
	t.Parallel()
	for _, legacy := range []bool{false, true} {
		t.Run(fmt.Sprintf("legacy=%v", legacy), func(t *testing.T) {
			t.Parallel()
			b := seeded(on(t, harness.NewRedis(t, servers.RedisConfig{}), Options{}))
			b.legacy, b.setGet = legacy, !legacy
			must(t, b.rdb.ConfigSet(b.ctx(), "maxmemory", "1").Err())
			_, err := b.WriteRules(b.ctx(), PartitionStep, "test", []uint64{1, 2, 3}, true)
			must(t, err)
			f, err := b.Followed(b.ctx())
			must(t, err)
			if !f.All([]uint64{1, 3}) {
				t.Error("the rules are not there")
			}
		})
	}
}

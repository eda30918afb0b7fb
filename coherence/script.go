package coherence

import (
	"crypto/sha1"
	"embed"
	"encoding/hex"
	"strings"
)

//go:embed scripts/*.lua
var scriptFiles embed.FS

// script is one Lua script in the two dialects that servers speak.
type script struct {
	// modern begins with a #! line (Redis 7.0, Valkey), legacy does not.
	modern, legacy       string
	modernSHA, legacySHA string
	// forgets says that it must run while memory is full. In the legacy
	// dialect it is then given one more key, which it unlinks first: such a
	// server refuses a full memory only the first write of a script, and only
	// if that may allocate.
	forgets bool
}

func loadScript(name string) *script {
	b, err := scriptFiles.ReadFile("scripts/" + name + ".lua")
	if err != nil {
		panic("script " + name + " is not embedded: " + err.Error())
	}
	sc := &script{modern: string(b)}
	first, rest, _ := strings.Cut(sc.modern, "\n")
	sc.forgets = strings.Contains(first, "allow-oom")
	if sc.forgets {
		rest = "redis.call('UNLINK', table.remove(KEYS))\n" + rest
	}
	sc.legacy = rest
	sc.modernSHA, sc.legacySHA = scriptSHA(sc.modern), scriptSHA(sc.legacy)
	return sc
}

// scriptSHA is the name that Redis gives a script.
func scriptSHA(text string) string {
	sum := sha1.Sum([]byte(text))
	return hex.EncodeToString(sum[:])
}

// The scripts, by the name of their file.
var (
	scriptBegin     = loadScript("begin")
	scriptBroadcast = loadScript("broadcast")
	scriptControl   = loadScript("control")
	scriptFill      = loadScript("fill")
	scriptFollowed  = loadScript("followed")
	scriptHeader    = loadScript("header")
	scriptHeartbeat = loadScript("heartbeat")
	scriptHot       = loadScript("hot")
	scriptKeep      = loadScript("keep")
	scriptLease     = loadScript("lease")
	scriptObserved  = loadScript("observed")
	scriptPrune     = loadScript("prune")
	scriptRegister  = loadScript("register")
	scriptRestore   = loadScript("restore")
	scriptRules     = loadScript("rules")
	scriptSeed      = loadScript("seed")
	scriptSeedMark  = loadScript("seedmark")
	scriptSource    = loadScript("source")
	scriptTable     = loadScript("table")
	scriptWatermark = loadScript("watermark")

	allScripts = []*script{
		scriptBegin, scriptBroadcast, scriptControl, scriptFill, scriptFollowed, scriptHeader, scriptHeartbeat, scriptHot, scriptKeep, scriptLease, scriptObserved, scriptPrune,
		scriptRegister, scriptRestore, scriptRules, scriptSeed, scriptSeedMark, scriptSource, scriptTable, scriptWatermark,
	}
)

// evalArgs are the arguments of EVALSHA. spare is the key that a forgetting
// script unlinks first in the legacy dialect: one in the slot of the others
// that never holds anything, or holds only what may go anyway.
func (s *Store) evalArgs(sc *script, spare string, keys []string, args ...any) []any {
	out := make([]any, 0, 4+len(keys)+len(args))
	n := len(keys)
	if s.legacy && sc.forgets {
		n++
	}
	out = append(out, "evalsha", s.sha(sc), n)
	for i := range keys {
		out = append(out, &keys[i]) // a pointer: boxing a string would allocate
	}
	if n > len(keys) {
		out = append(out, spare)
	}
	return append(out, args...)
}

func (s *Store) sha(sc *script) string {
	if s.legacy {
		return sc.legacySHA
	}
	return sc.modernSHA
}

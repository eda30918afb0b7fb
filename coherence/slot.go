package coherence

import "strconv"

// fnv1a is FNV-1a 64 of the name, in line because hash/fnv would allocate.
func fnv1a(name string) uint64 {
	h := uint64(14695981039346656037)
	for i := 0; i < len(name); i++ {
		h = (h ^ uint64(name[i])) * 1099511628211
	}
	return h
}

// hashTag returns the part of a key that Redis Cluster hashes, if the key has
// a hash tag: what stands between the first '{' and the next '}', unless that
// is empty.
func hashTag(key string) (string, bool) {
	for i := 0; i < len(key); i++ {
		if key[i] != '{' {
			continue
		}
		for j := i + 1; j < len(key); j++ {
			if key[j] == '}' {
				return key[i+1 : j], j > i+1
			}
		}
		return "", false
	}
	return "", false
}

// Slot is the hash slot of a key in Redis Cluster.
func Slot(key string) int {
	if tag, ok := hashTag(key); ok {
		key = tag
	}
	return int(crc16(key) % Slots)
}

// crcTable is the table of CRC-16/XMODEM, which Redis Cluster uses.
var crcTable = func() (t [256]uint16) {
	for i := range t {
		c := uint16(i) << 8
		for range 8 {
			if c&0x8000 != 0 {
				c = c<<1 ^ 0x1021
			} else {
				c <<= 1
			}
		}
		t[i] = c
	}
	return t
}()

func crc16(s string) uint16 {
	var c uint16
	for i := 0; i < len(s); i++ {
		c = c<<8 ^ crcTable[byte(c>>8)^s[i]]
	}
	return c
}

// slotTag is the least decimal number that hashes to slot.
func slotTag(slot int) string {
	for n := 0; ; n++ {
		if s := strconv.Itoa(n); int(crc16(s)%Slots) == slot {
			return s
		}
	}
}

// slotTags is slotTag for every slot, in one walk over the numbers.
func slotTags() []string {
	tags := make([]string, Slots)
	for n, left := 0, Slots; left > 0; n++ {
		s := strconv.Itoa(n)
		if slot := crc16(s) % Slots; tags[slot] == "" {
			tags[slot], left = s, left-1
		}
	}
	return tags
}

// Package client is the cache that applications use.
package client

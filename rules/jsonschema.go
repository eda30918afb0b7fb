package rules

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// JSONSchema is the grammar of rules.yaml as a JSON Schema (draft 2020-12), for
// editors that complete and check while one writes. It accepts every file that
// Parse accepts; what only Parse can tell, such as what a template names, it
// lets through. Since included files state no version, it asks none of any.
func JSONSchema() []byte {
	defs := jsonSchema{}
	for name, def := range grammar() {
		defs[name] = def
	}
	root := defs["file"].(jsonSchema)
	delete(defs, "file")
	root["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	root["title"] = "rules.yaml of Lethe"
	root["$defs"] = defs
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(root); err != nil {
		panic(fmt.Sprintf("rules: the grammar is no JSON: %v", err)) // it is made of maps, lists and text
	}
	return b.Bytes()
}

type jsonSchema map[string]any

// expansion is a value that the environment decides.
const expansion = `\$\{[A-Za-z_][A-Za-z0-9_]*(:-[^}]*)?\}`

// An absent value and an empty one are the same, but where one is required.
func optional(s jsonSchema) jsonSchema { return jsonSchema{"anyOf": []jsonSchema{s, {"type": "null"}}} }

func refTo(name string) jsonSchema { return jsonSchema{"$ref": "#/$defs/" + name} }

func describe(text string, s jsonSchema) jsonSchema {
	s["description"] = text
	return s
}

// orVariable lets a value be a variable too.
func orVariable(s jsonSchema) jsonSchema {
	return jsonSchema{"anyOf": []jsonSchema{s, {"type": "string", "pattern": expansion}, {"type": "null"}}}
}

// anyText is any scalar: YAML's 42 is a fine name of a rule.
func anyText() jsonSchema { return jsonSchema{"type": []string{"string", "number", "boolean"}} }

// textOrTexts is a list, or its only item.
func textOrTexts() jsonSchema {
	return optional(jsonSchema{"anyOf": []jsonSchema{anyText(), {"type": "array", "items": anyText()}}})
}

func aDuration() jsonSchema {
	return orVariable(jsonSchema{"type": "string", "minLength": 2, "pattern": `^\+?([0-9]{1,5}d)?(([0-9]+[.]?[0-9]*|[.][0-9]+)(ns|us|µs|μs|ms|s|m|h))*$`})
}

func clock() jsonSchema {
	return jsonSchema{"type": "string", "pattern": timeOfDay.String() + "|" + expansion}
}

func trueOrFalse() jsonSchema { return orVariable(jsonSchema{"type": "boolean"}) }

func oneOf(of ...string) jsonSchema { return orVariable(jsonSchema{"enum": of}) }

func mappingOf(what string, fields jsonSchema, required ...string) jsonSchema {
	s := jsonSchema{"type": "object", "description": what, "properties": fields, "additionalProperties": false}
	if len(required) > 0 {
		s["required"] = required
	}
	return s
}

// grammar describes each mapping of the file. A test holds its fields and the
// parser's together, and both against testdata.
func grammar() map[string]jsonSchema {
	ttl := describe("Life of an entry; never: until it is invalidated.", jsonSchema{"anyOf": []jsonSchema{aDuration(), {"const": "never"}}})
	ops := []string{"insert", "update", "delete", "truncate"}
	op := jsonSchema{"anyOf": []jsonSchema{{"enum": ops}, {"type": "string", "pattern": expansion}}}
	shared := func() jsonSchema { // of entries and their defaults
		return jsonSchema{
			"ttl":          ttl,
			"negative_ttl": describe("Life of \"there is no such row\".", aDuration()),
			"max_stale":    describe("Bound of the watermark's age, for the client.", aDuration()),
			"mode":         describe("exact: the whole protocol holds. plain: raw values that any program reads with GET.", oneOf("exact", "plain")),
			"versions": describe("Versions of the value's form that live at the same time: the highest, or a list.", orVariable(jsonSchema{"anyOf": []jsonSchema{
				{"type": "integer", "minimum": 1, "maximum": 16},
				{"type": "array", "items": orVariable(jsonSchema{"type": "integer", "minimum": 1, "maximum": 1000})}}})),
			"max_value": describe("Greatest size of a value in bytes, such as 4096, 64KB or 1MB.", orVariable(jsonSchema{"anyOf": []jsonSchema{
				{"type": "integer", "minimum": 1, "maximum": 1<<31 - 1}, {"type": "string", "pattern": sizeForm.String()}}})),
			"l1":    describe("false: values stay out of the process's cache.", trueOrFalse()),
			"owner": describe("Who to ask.", optional(anyText())),
		}
	}
	entry := shared()
	entry["key"] = describe("Template of the keys: product:{id}.", anyText())
	entry["load"] = optional(refTo("load"))
	entry["tags"] = describe("Names that a value depends on, rendered from the loaded row.", textOrTexts())
	entry["prefetch"] = describe("Names of other entries that are warmed with one that is hot or filled again, of the placeholders of the key.", textOrTexts())
	entry["keep"] = describe("An invalidation that the value already reflects keeps it.", trueOrFalse())
	entry["stale_for"] = describe("How long readers may be served the old value while the entry is rewarmed.", aDuration())
	entry["description"] = describe("What is cached, and why.", optional(anyText()))

	sharedRule := func() jsonSchema {
		return jsonSchema{
			"on":      describe("Operations that matter; delete includes truncate. Default: all.", orVariable(jsonSchema{"anyOf": []jsonSchema{op, {"type": "array", "items": op, "minItems": 1}}})),
			"action":  describe("What becomes of the entries.", oneOf("delete", "stale", "rewarm", "auto")),
			"cascade": describe("How far dependencies are followed. Default: depth 8.", orVariable(jsonSchema{"anyOf": []jsonSchema{{"type": "boolean"}, refTo("cascade")}})),
			"strict":  describe("Raise the class where the log does not carry an old value that a key needs.", trueOrFalse()),
			"owner":   describe("Who to ask.", optional(anyText())),
		}
	}
	rule := sharedRule()
	rule["name"] = describe("Unique; names metrics, logs and findings.", anyText())
	rule["table"] = describe("jsonSchema.name", anyText())
	rule["when"] = describe("CEL over op, old, new and changed(\"column\").", optional(anyText()))
	rule["keys"] = describe("Templates, rendered for the old and the new row.", textOrTexts())
	rule["tags"] = describe("[a, b] purges each; {all: [a, b]} what carries both.", jsonSchema{"anyOf": []jsonSchema{textOrTexts(), refTo("tags")}})
	rule["if"] = describe("Which entries action rewarm fills again. Default: always.", oneOf("always", "present", "hot"))
	rule["lookup"] = optional(refTo("lookup"))
	rule["debounce"] = describe("How long sweeps and rewarming may wait for more changes; at most 10s. Entries are forgotten at once.", aDuration())
	rule["at"] = describe("A column: the rule acts at the time in it, and not at the change.", jsonSchema{"type": "string", "minLength": 1, "maxLength": columnMax})
	rule["description"] = describe("Why these changes matter.", optional(anyText()))

	list := func(name string) jsonSchema { return optional(jsonSchema{"type": "array", "items": refTo(name)}) }
	defs := map[string]jsonSchema{
		"file": mappingOf("What the application caches, and which changes make it forget.", jsonSchema{
			"version":      describe("Version of the grammar: 1.", orVariable(jsonSchema{"const": 1})),
			"namespace":    describe("Prefix of every key and tag; \"\" leaves them as written.", optional(jsonSchema{"type": []string{"string", "number", "boolean"}, "pattern": `^([A-Za-z0-9][A-Za-z0-9_.-]{0,62})?$|` + expansion})),
			"include":      describe("Files, or patterns of files, relative to this one.", textOrTexts()),
			"defaults":     optional(refTo("defaults")),
			"lint":         optional(refTo("lint")),
			"entries":      describe("The classes of cache entries, by name.", optional(jsonSchema{"type": "object", "propertyNames": jsonSchema{"pattern": className.String()}, "additionalProperties": refTo("entry")})),
			"rules":        list("rule"),
			"dependencies": list("dependency"),
			"warm":         list("warm"),
			"edge":         list("edge"),
		}),
		"defaults": mappingOf("What entries and rules say that do not say otherwise.", jsonSchema{
			"entries": optional(refTo("defaults.entries")), "rules": optional(refTo("defaults.rules"))}),
		"defaults.entries": mappingOf("Defaults of entries, of this file and those that it includes.", shared()),
		"defaults.rules":   mappingOf("Defaults of rules, of this file and those that it includes.", sharedRule()),
		"lint": mappingOf("What the team asks of names.", jsonSchema{
			"key":    describe("A regular expression that every key and tag must match, without the namespace.", optional(anyText())),
			"tenant": describe("A column: the keys of a table that has it must have it too.", optional(jsonSchema{"type": []string{"string", "number", "boolean"}, "minLength": 1, "maxLength": 63})),
		}),
		"entry": mappingOf("A class of cache entries.", entry, "key"),
		"load": mappingOf("How Lethe reads values of the class, many at once: sql or http.", jsonSchema{
			"sql":  describe("A SELECT by the arrays @name, one for each placeholder of the key: WHERE id = ANY(@id).", optional(anyText())),
			"http": optional(refTo("http"))}),
		"rule": mappingOf("Which changes of a table matter, and what they invalidate.", rule, "name", "table"),
		"lookup": mappingOf("Values that the row does not have, for {lookup.column} in keys and tags.", jsonSchema{
			"sql": describe("A SELECT by columns of the rule's table: SELECT category_id FROM products WHERE id = @product_id", anyText())}, "sql"),
		"tags": mappingOf("all: entries that carry each of them; any: those that carry one.", jsonSchema{"all": textOrTexts(), "any": textOrTexts()}),
		"cascade": mappingOf("How far dependencies are followed.", jsonSchema{
			"depth":        describe("Nothing beyond it is touched.", orVariable(jsonSchema{"type": "integer", "minimum": 0, "maximum": CascadeDepthMax})),
			"stale_beyond": describe("Entries that are further away are kept stale instead of forgotten.", orVariable(jsonSchema{"type": "integer", "minimum": 0, "maximum": CascadeDepthMax - 1}))}),
		"dependency": mappingOf("Whatever forgets a name of the form of the first forgets the others.", jsonSchema{
			"of": describe("Template: user:{id}.", anyText()), "also": describe("Templates of the placeholders of the first.", textOrTexts()),
			"when": describe("CEL over the placeholders of the first, op, table, rule and depth.", optional(anyText()))}, "of", "also"),
		"warm": mappingOf("Entries to be filled before they are asked for.", jsonSchema{
			"entry": describe("The entry's name.", anyText()), "sql": describe("A SELECT of the placeholders of its key.", anyText()),
			"on_start": describe("Run it before the process is ready.", trueOrFalse()),
			"every":    describe("Time between runs, 1s to 31d.", aDuration()),
			"cron":     describe("Minute, hour, day of month, month, day of week.", optional(jsonSchema{"type": "string"})),
			"at":       describe("Times of day: 03:00.", orVariable(jsonSchema{"anyOf": []jsonSchema{clock(), {"type": "array", "items": clock()}}})),
			"tz":       describe("Time zone of cron and at, such as Europe/Berlin. Default: UTC.", optional(jsonSchema{"type": "string", "minLength": 1})),
			"limit":    describe("Greatest number of rows of a run.", orVariable(jsonSchema{"type": "integer", "minimum": 1, "maximum": 1<<31 - 1})),
			"deadline": describe("Longest time of a run, 1s to 24h. Default: 10m.", aDuration()),
			"priority": describe("0 to 100, the highest first. Default: 50.", orVariable(jsonSchema{"type": "integer", "minimum": 0, "maximum": WarmPriorityMax}))}, "entry", "sql"),
		"http": mappingOf("A POST of a list of keys to the application, signed.", jsonSchema{
			"url":        describe("https, or http to this machine.", jsonSchema{"type": "string", "pattern": "^https?://|" + expansion}),
			"secret_env": describe("The environment variable that holds the secret.", jsonSchema{"type": "string", "pattern": envName.String() + "|" + expansion}),
			"timeout":    describe("Bound of one request. Default: 5s.", aDuration()),
			"batch":      describe("Greatest number of keys of a request. Default: 100.", orVariable(jsonSchema{"type": "integer", "minimum": 1, "maximum": HTTPBatchMax})),
			"insecure":   describe("Permit http to other machines.", trueOrFalse())}, "url", "secret_env"),
	}
	defs["edge"] = edgeSchema()
	defs["rule"]["anyOf"] = []jsonSchema{{"required": []string{"keys"}}, {"required": []string{"tags"}}}
	defs["load"]["oneOf"] = []jsonSchema{{"required": []string{"sql"}}, {"required": []string{"http"}}}
	defs["cascade"]["minProperties"] = 1
	defs["tags"]["minProperties"], defs["tags"]["maxProperties"] = 1, 1
	return defs
}

func edgeSchema() jsonSchema {
	variable := jsonSchema{"type": "string", "pattern": variableName.String()}
	httpURL := jsonSchema{"type": "string", "pattern": `^https?://|` + expansion}
	return mappingOf("An HTTP endpoint that is told what was forgotten.", jsonSchema{
		"name":           describe("Unique; names metrics, logs, and what is stored for it.", anyText()),
		"url":            describe("What is posted to.", httpURL),
		"format":         describe("lethe: signed JSON. surrogate-key: a header of that name (Fastly). cache-tag: {\"tags\": [...]} (Cloudflare).", oneOf(edgeFormats...)),
		"everything":     describe("How all is forgotten: a URL that is posted to, or a tag that every response carries.", optional(anyText())),
		"classes":        describe("Entries whose keys and raises are told. Default: all.", textOrTexts()),
		"keys":           describe("Responses are labelled with the keys of what they are made of. Default: true.", trueOrFalse()),
		"tags":           describe("Responses are labelled with tags. Default: true.", trueOrFalse()),
		"with_namespace": describe("Names keep their namespace. Default: false.", trueOrFalse()),
		"batch":          describe("Most names of one request.", orVariable(jsonSchema{"type": "integer", "minimum": 1, "maximum": EdgeBatchMax})),
		"timeout":        describe("Bound of one request. Default: 5s.", aDuration()),
		"again":          describe("Every name is told once more after that long. Default: 5s.", aDuration()),
		"pending":        describe("Most names that wait; beyond it everything is forgotten. Default: 100000.", orVariable(jsonSchema{"type": "integer", "minimum": 100, "maximum": 10_000_000})),
		"headers":        describe("Sent with each request.", optional(jsonSchema{"type": "object", "additionalProperties": anyText()})),
		"headers_env":    describe("Headers whose value a variable of the environment holds.", optional(jsonSchema{"type": "object", "additionalProperties": variable})),
		"secret_env":     describe("The variable with the secret that signs bodies.", optional(variable)),
		"token_env":      describe("The variable with a bearer token.", optional(variable)),
	}, "name", "url")
}

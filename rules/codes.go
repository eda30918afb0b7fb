package rules

// The codes of findings. A code keeps its meaning for ever; numbers below 020
// are errors, those from 020 on are warnings.
const (
	CodeSyntax       = "L001" // not YAML, or more than one document
	CodeUnknownField = "L002" // a field that the grammar does not have
	CodeMissing      = "L003" // a field that must be there
	CodeValue        = "L004" // a value of the wrong kind or out of bounds
	CodeDuplicate    = "L005" // a key, name or class that is there twice
	CodeUnsupported  = "L006" // understood by a later version
	CodeTemplate     = "L007" // a template that can not be read
	CodeCondition    = "L008" // a condition that can not be read, or a type error
	CodeTable        = "L009" // an unknown table, or none that can be published
	CodeColumn       = "L010" // an unknown column
	CodeClass        = "L011" // an unknown entry class
	CodeNoIdentity   = "L012" // updates or deletes of a table without replica identity
	CodeLimit        = "L013" // too large, too deep, too many aliases
	CodeNamespace    = "L014" // a namespace that may not be used
	CodeInclude      = "L015" // a file that can not be included
	CodeEnvironment  = "L016" // a variable that can not be expanded
	CodeLookup       = "L017" // a lookup that the database refuses
	CodeStatement    = "L018" // a statement that the database does not take
	CodeFits         = "L019" // a path or filter that the column's type does not have

	CodeHiddenOld     = "L020" // the replica identity hides an old value that a name needs
	CodeChangedHidden = "L021" // a condition reads an old value that never arrives
	CodeToast         = "L022" // a column in a name may be missing from an update
	CodeUnlogged      = "L023" // an unlogged table: the log never carries it
	CodePartition     = "L024" // a partition root, or a partition
	CodeForeignKey    = "L025" // a foreign key that changes rows no rule watches
	CodeKeyColumns    = "L026" // rules that build one key from different columns
	CodeCycle         = "L027" // dependencies in a circle
	CodeSeparator     = "L028" // different values may build one name
	CodeNoClass       = "L029" // a key without a class
	CodeNoLoader      = "L030" // entries to be filled whose class has no loader
	CodeRewarm        = "L031" // rewarm of what nothing can load
	CodeGenerated     = "L032" // a generated column: the log may not carry it
	CodeNoEffect      = "L033" // a placeholder or condition that can never take effect
	CodeZone          = "L037" // at: a column without time zone, read as UTC
	CodeUncovered     = "L034" // a class whose loads read a table that no rule covers
	CodeDebouncePlain = "L036" // debounce of a tag that plain entries carry
	CodeLookedUp      = "L035" // a table that is looked up in, and that has no rule for what is looked up
	CodeDeclared      = "L038" // a row of lethe.dependencies that can not be understood

	CodeIncludeNone    = "L040" // include: a pattern that no file matches
	CodePolicyName     = "L041" // a key or tag that lint.key does not match
	CodeTenant         = "L042" // a key without the tenant that its table has
	CodeNoNamespace    = "L043" // a set without namespace
	CodeSecret         = "L044" // a column that looks secret in a name or a value
	CodeNeverForgotten = "L045" // values that live long, and no rule
	CodeLoad           = "L046" // a load.sql that can not fill its entry
	CodeNeverWarmed    = "L047" // a warm-up that nothing starts
	CodeWarmType       = "L048" // a warm-up whose column prints otherwise than the keys of rules
)

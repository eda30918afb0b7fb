package rules

import (
	"slices"

	"go.yaml.in/yaml/v3"
)

// ruleWhen compiles a condition without a schema: what is wrong whatever the
// columns are is said here, what the types tell by Set.Check.
func (b *builder) ruleWhen(n *yaml.Node, r *Rule) {
	if b.env == nil {
		env, err := newConditionEnv(anyColumn)
		if err != nil {
			b.d.errorf(CodeCondition, b.d.place(n), "conditions are not available: %s", err)
			return
		}
		b.env = env
	}
	cond, errs := compileCondition(b.env, r.When)
	for _, e := range errs {
		b.d.add(Error, CodeCondition, r.whenPlace(e.line, e.col), e.hint, "when: %s", e.message)
	}
	if cond != nil {
		cond.columns = slices.Clip(cond.columns)
		r.cond = cond
	}
}

package main

import (
	"github.com/spf13/cobra"

	"github.com/lethe-cache/lethe/scaffold"
)

func (p *program) docCommand() *cobra.Command {
	var out string
	var force bool
	cmd := &cobra.Command{
		Use:   "doc",
		Short: "Write the team's cache strategy document from the rules",
		Long: `Writes a document (Markdown) that says of each class what is cached and why, its
key, mode and life, what it depends on, what invalidates it and who owns it; which
tables lead to which classes; and what nobody has described yet. Nothing is asked
of a server. Exit code 3 if the rules are not valid.`,
		Args: cobra.NoArgs,
		RunE: func(_ *cobra.Command, _ []string) error {
			if err := p.settings.validate(false); err != nil {
				return err
			}
			if err := notThere(out, force); err != nil {
				return err
			}
			set, err := p.loadRules()
			if err != nil {
				return err
			}
			return writeNew(p.stdout, out, force, scaffold.Document(set))
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "write there instead of to standard output")
	cmd.Flags().BoolVar(&force, "force", false, "overwrite the file of --out")
	return cmd
}

package coherence

// CheckURL reports what is wrong with the form of a URL that Dial would be
// given; see there for the forms. It connects nowhere and does not repeat the
// password.
func CheckURL(raw string) error {
	_, err := parseTarget(raw)
	return err
}

package meter

// Decodes says whether the sections of a module are understood and in bounds,
// whatever is in its code.
func Decodes(module []byte) bool {
	_, err := decode(module, Options{}.withDefaults())
	return err == nil
}

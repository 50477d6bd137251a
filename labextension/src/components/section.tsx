/** A part of a view with a heading. */

import React, { useId } from 'react';

export function Section({
  title,
  children
}: {
  title: string;
  children: React.ReactNode;
}): JSX.Element {
  const id = useId();
  return (
    <section className="fj-Section" aria-labelledby={id}>
      <h3 id={id}>{title}</h3>
      {children}
    </section>
  );
}
